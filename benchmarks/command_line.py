"""How a benchmark joins the command line of ``python -m benchmarks``."""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


def new_command(
    commands: Commands, name: str, help_text: str, description: str | None, epilog: str = ""
) -> argparse.ArgumentParser:
    """Adds a command that takes no flags yet.

    Args:
        commands: Of the whole program.
        name: What it is called by.
        help_text: A line on it.
        description: Its module's docstring.
        epilog: What its figures are.
    """
    raw = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(
        name, help=help_text, description=description, epilog=epilog, formatter_class=raw
    )
