"""Settings as flags: what one means is written once, at the field that it sets."""

import dataclasses
from collections.abc import Sequence
from typing import Any


def setting(default: Any, words: str) -> Any:
    """A dataclass's field that is a flag, too; ``words`` are its documentation and its help."""
    return dataclasses.field(default=default, metadata={"help": words})


def help_of(owner: type[Any], name: str) -> str:
    """The words of a setting."""
    (found,) = (one for one in dataclasses.fields(owner) if one.name == name)
    words: str = found.metadata["help"]
    return words


def same_setting(owner: type[Any], name: str, **default: Any) -> Any:
    """The field ``name`` of another dataclass: its words and, unless given, its default."""
    value = default["default"] if default else getattr(owner, name)
    return setting(value, help_of(owner, name))


def with_dashes(argv: Sequence[str]) -> list[str]:
    """The words of a command line with every flag in one spelling: ``--a_b=c`` as ``--a-b=c``."""
    words = []
    for word in argv:
        flag, sign, value = word.partition("=")
        is_flag = flag.startswith("--")
        words.append(f"{flag.replace('_', '-')}{sign}{value}" if is_flag else word)
    return words
