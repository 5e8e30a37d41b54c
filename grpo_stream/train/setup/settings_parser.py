"""Flags and YAML files as settings: one parser for the launch scripts.

trl's parser makes the flags from dataclasses. Here their mistakes become a :class:`ConfigError`
that names field, value and a value that works, and ``--help`` tells apart whose they are.
"""

import argparse
import copy
import dataclasses
import difflib
import enum
import importlib.util
import inspect
import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments
from trl import TrlParser

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.yaml_files import read_yaml

RENAMED = {
    "num_threads": "num_reader_threads",
    "num_processes": "num_decode_processes",
    "deadline_seconds": "retry_deadline_seconds",
    "max_bytes": "cache_bytes",
    "dev_shards": "eval_shards",
    "eval_every_steps": "eval_steps",
}
"""What a setting was called, in code or as a flag, in version 0.1 -> what it is called."""

_UPSTREAM = ("trl", "transformers")
_KINDS = {
    "int": ("N", "a whole number", 8),
    "float": ("X", "a number", 0.5),
    "string_to_bool": ("TRUE|FALSE", "true or false", "true"),
}
"""Name of a flag's type -> how ``--help`` shows its value, what errors call it, an example."""
_WORDS = {True: ("true", "yes", "on"), False: ("false", "no", "off")}


class SettingsParser(TrlParser):
    """Parses flags, and a YAML file that ``--config`` names; flags win.

    Args:
        types: Dataclasses of settings; their fields are the flags, in both spellings.
        description: Shown above the flags.
    """

    def __init__(self, *types: type[Any], description: str | None = None) -> None:
        super().__init__(
            types,
            usage="%(prog)s [-h] [--config FILE.yaml] [--flag VALUE ...]",
            description=description,
            allow_abbrev=False,
            exit_on_error=False,
            formatter_class=_HelpFormatter,
        )
        self._hints = {name: hint for one in types for name, hint in get_type_hints(one).items()}
        self._needed = [action for action in self._actions if action.required]
        for action in self._needed:
            action.required = False  # its error would not say what works

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """:meth:`read` and :meth:`build` in one."""
        return self.build(self.read(argv))

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The settings by name, from file and flags; ``--help`` is answered here.

        Raises:
            ConfigError: a file that cannot be read, a setting that nobody knows, or a value of the
                wrong kind; naming what works.
        """
        before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        before.add_argument("--config", nargs="?", const="")
        # The launcher of DeepSpeed adds --local_rank; the environment says the same.
        before.add_argument("--local_rank", "--local-rank")
        first, words = before.parse_known_args(list(argv))
        if first.config is not None and not {"-h", "--help"} & set(words):
            self._read_file(Path(first.config))
        namespace: argparse.Namespace
        try:
            namespace, unknown = self.parse_known_args(words)
        except argparse.ArgumentError as error:
            raise self._misused(error) from None
        if unknown:
            raise self._unknown(*_first_flag(unknown))
        for action in self._needed:
            if getattr(namespace, action.dest) is None:
                raise ConfigError(
                    action.dest, None, f"is needed, as in --{action.dest} VALUE: {action.help}"
                )
        return namespace

    def build(self, namespace: argparse.Namespace) -> tuple[Any, ...]:
        """One instance of each dataclass, in the order in which they were given.

        Raises:
            ConfigError, GrpoStreamError: settings that their own class refuses.
        """
        try:
            return tuple(
                one(
                    **{
                        f.name: getattr(namespace, f.name)
                        for f in dataclasses.fields(one)
                        if f.init
                    }
                )
                for one in self.dataclass_types
            )
        except ConfigError:
            raise
        except ValueError as error:
            raise GrpoStreamError(f"the settings cannot be used: {error}") from error

    def build_alone(self, namespace: argparse.Namespace) -> tuple[Any, ...]:
        """:meth:`build` where no other ranks are to be joined, though there is a DeepSpeed file."""
        deepspeed, namespace.deepspeed = namespace.deepspeed, None
        built = self.build(namespace)  # transformers (5.23) would join ranks for the file
        for one in built:
            if isinstance(one, TrainingArguments):
                one.deepspeed = deepspeed
        return built

    def set_defaults_here(self, *, use_cpu: bool) -> None:
        """Defaults that depend on the machine: CPU and float32, and what logs are written for.

        Args:
            use_cpu: There is no accelerator.
        """
        if use_cpu:
            self.set_defaults(use_cpu=True, bf16=False)
        if importlib.util.find_spec("tensorboard") is not None:
            self.set_defaults(report_to="tensorboard")

    def format_help(self) -> str:
        """Overrides ``ArgumentParser.format_help``: sections by class, this project's first."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        sections: dict[tuple[int, str], list[argparse.Action]] = {}
        for one in self.dataclass_types:
            for name in (field.name for field in dataclasses.fields(one) if field.init):
                sections.setdefault(_section(one, name), []).append(self._shown(name))
        for (_, title), actions in sorted(sections.items(), key=lambda item: item[0][0]):
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        text: str = formatter.format_help()
        return text

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Extends ``ArgumentParser._get_value`` (Python 3.11): its error says what works."""
        try:
            value = super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            raise _wrong(action, arg_string) from None
        if action.choices is not None and value not in action.choices:
            raise _wrong(action, arg_string)
        return value

    def _read_file(self, path: Path) -> None:
        """Makes the file's settings the defaults of the flags."""
        examples = "see launch/configs/ for examples"
        if not path.is_file():
            raise ConfigError("config", str(path), f"is no file; {examples}")
        content = read_yaml("config", path, examples)
        if not isinstance(content, dict):
            expected = f'must hold lines such as "learning_rate: 1.0e-6"; {examples}'
            raise ConfigError("config", str(path), expected)
        for name, value in content.items():
            if name == "env" and isinstance(value, dict):  # as trl's parser has it
                os.environ.update({key: str(one) for key, one in value.items()})
                continue
            actions = [action for action in self._actions if action.dest == name]
            if not actions or name == "help":
                raise self._unknown(str(name), value)
            checked = self._from_file(actions[0], value)
            for action in actions:  # --flag and --no_flag
                action.default = checked

    def _from_file(self, action: argparse.Action, value: Any) -> Any:
        """A value of the file as the flag's; what its type allows is taken as it is."""
        if _fits(value, self._hints[action.dest]):
            return value
        if action.nargs == "+" and value is not None:
            items = value if isinstance(value, list) else [value]
            return [self._get_value(action, str(item)) for item in items]
        if isinstance(value, bool) and action.choices:  # YAML reads the words on, off, yes, no so
            return next((w for w in _WORDS[value] if w in action.choices), None) or self._get_value(
                action, str(value)
            )
        if value is None or isinstance(value, dict | list):
            raise _wrong(action, value)
        return self._get_value(action, str(value))

    def _unknown(self, name: str, value: object) -> ConfigError:
        new = RENAMED.get(name)
        if new in self._hints:
            works = value if isinstance(value, str | int | float) else "..."
            return ConfigError(name, value, f"is called {new} now; write {new}={works}")
        close = difflib.get_close_matches(name, self._hints, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        return ConfigError(name, value, f"is no setting{meant or ';'} --help lists all")

    def _misused(self, error: argparse.ArgumentError) -> ConfigError:
        flag = str(error.argument_name).partition("/")[0]
        action = next(one for one in self._actions if flag in one.option_strings)
        return ConfigError(action.dest, None, f"{error.message}: {_works(action)}")

    def _shown(self, name: str) -> argparse.Action:
        """The flag ``name`` in one spelling, without the twin that turns it off."""
        shown: argparse.Action = copy.copy(
            next(action for action in self._actions if action.dest == name)
        )
        shown.option_strings = shown.option_strings[:1]
        if shown.choices is None:
            shown.metavar = _kind(shown)[0]
        return shown


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The script's docstring as it is written, and each flag's default."""


def _section(settings: type[Any], name: str) -> tuple[int, str]:
    """Rank and title of the section of ``--help`` that the field ``name`` belongs to."""
    owner = next(one for one in settings.__mro__ if name in inspect.get_annotations(one))
    package = owner.__module__.partition(".")[0]
    if package not in _UPSTREAM:
        summary = (owner.__doc__ or "").partition("\n")[0].rstrip(".")
        return 0, f"{owner.__name__}: {summary[:1].lower()}{summary[1:]}"
    if settings.__module__.startswith(package):  # trl's classes with what they inherit from trl
        owner = settings
    return 1 + _UPSTREAM.index(package), f"{package}.{owner.__name__}"


def _kind(action: argparse.Action) -> tuple[str, str, object]:
    # By its name: trl (1.16) wraps the types of settings that may be None.
    return _KINDS.get(getattr(action.type, "__name__", ""), ("TEXT", "text", "a word"))


def _works(action: argparse.Action) -> str:
    """What the flag takes, with an example."""
    if action.choices is not None:
        return f"one of {', '.join(str(one) for one in action.choices)}"
    _, kind, example = _kind(action)
    default = action.default
    if isinstance(default, bool) or not isinstance(default, int | float | str):
        default = example
    return kind if kind == "true or false" else f"{kind}, for example {default}"


def _wrong(action: argparse.Action, value: object) -> ConfigError:
    return ConfigError(action.dest, value, f"must be {_works(action)}")


def _fits(value: object, hint: Any) -> bool:
    """Whether a value of a YAML file is one of the type ``hint``."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        (inner,) = get_args(hint)
        return isinstance(value, list) and all(_fits(item, inner) for item in value)
    if hint is Any:
        return True
    kind = origin or hint
    if not isinstance(kind, type) or issubclass(kind, enum.Enum):
        return False
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _first_flag(unknown: Sequence[str]) -> tuple[str, str | None]:
    """Name and value of the first of the words that no flag has taken."""
    place = next((n for n, word in enumerate(unknown) if word.startswith("-")), None)
    if place is None:
        raise ConfigError("flags", unknown[0], "belongs to no flag; write --flag VALUE")
    flag, sign, value = unknown[place].partition("=")
    following = unknown[place + 1 : place + 2]
    found = value if sign else next((w for w in following if not w.startswith("--")), None)
    return flag.lstrip("-").replace("-", "_"), found
