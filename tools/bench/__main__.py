"""``python -m tools.bench COMMAND``: what the stream and the builder do, in numbers."""

import argparse
import sys
from collections.abc import Sequence

from grpo_stream.errors import GrpoStreamError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code (0 done, 2 settings that cannot work)."""
    # Here, because the builder's worker processes import this module again.
    from tools.bench import build, loader, memory, order, upload  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    order.add_command(commands)
    build.add_command(commands)
    upload.add_command(commands)
    memory.add_command(commands)
    loader.add_command(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except GrpoStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
