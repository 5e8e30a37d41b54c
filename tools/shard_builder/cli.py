"""The command line: ``shard-builder build``, ``finish``, ``verify``, ``index``, ``stats``, ..."""

import argparse
import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.flags import with_dashes
from grpo_stream.storage.atomic_files import NO_ROOM

EXIT_CODES = """\
exit codes:
  0    fine
  1    the data is bad, or something cannot be read or written
  2    wrong usage: a flag, a path or a setting that cannot work; nothing was written
  130  stopped by Ctrl-C; the same build command resumes from there
  143  stopped by SIGTERM; likewise
"""


_FLAGS = {
    "max_pixels": "--max-pixels",
    "min_pixels": "--min-pixels",
    "multiple": "--patch-multiple",
    "url": "URL",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Words after the program's name; None takes them from the command line.

    Returns:
        0 fine, 1 the data is bad or cannot be read, 2 wrong usage, 130 stopped by Ctrl-C, 143 by
        SIGTERM.
    """
    args = _parser().parse_args(with_dashes(sys.argv[1:] if argv is None else argv))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold letters that the terminal's encoding has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _sigterm_raises():
            return int(args.run(args))
    except ConfigError as error:
        flag = _FLAGS.get(error.field, error.field)
        return _end(ConfigError(flag, error.value, error.expected), 2)
    except (GrpoStreamError, OSError) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            room = "make room in --out and where temporary files go (TMPDIR)"
            return _end(f"{error.strerror}: {room}; the same build command resumes from there", 1)
        return _end(error, 1)
    except KeyboardInterrupt as error:
        resumes = args.command in ("build", "head", "merge", "split")
        more = "; the same command resumes from there" if resumes else ""
        return _end(f"stopped{more}", 143 if isinstance(error, _TerminatedError) else 130)


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM came, as batch systems send it; what is to be cleaned up is cleaned up."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may ask for signals
        return

    def end(*_: object) -> NoReturn:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(message: object, code: int) -> int:
    print(f"shard-builder: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    # Here, because worker processes import this module again, and need none of these.
    from shard_builder import build_command, dataset_commands, pass_commands  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="shard-builder",
        description="Raw records and images to WebDataset shards with a manifest.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, add, what, more in (
        (
            "build",
            build_command.add_build,
            "make shards of records in the formats that people have",
            _BUILD,
        ),
        ("finish", build_command.add_finish, "lists and manifest of a build in parts", _FINISH),
        (
            "verify",
            pass_commands.add_verify,
            "re-read it all and name the first bad key",
            "",
        ),
        ("index", pass_commands.add_index, "index and manifest for tars that others made", ""),
        ("stats", pass_commands.add_stats, "counts, sizes, boxes and visual tokens", ""),
        ("show", dataset_commands.add_show, "an HTML page and a picture of some samples", ""),
        ("head", dataset_commands.add_head, "a data set of the first samples of one", ""),
        ("merge", dataset_commands.add_merge, "one data set of several", ""),
        ("split", dataset_commands.add_split, "several data sets of one, no image in two", ""),
    ):
        command = commands.add_parser(
            name,
            help=what,
            description=more or f"{what[0].upper()}{what[1:]}.",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(command)
        _add_progress(command)
    return parser


def _add_progress(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--progress",
        choices=("bar", "json", "quiet"),
        default="bar",
        help="a bar, or JSON lines for batch jobs, on stderr; or nothing (%(default)s)",
    )
    command.add_argument(
        "--quiet", dest="progress", action="store_const", const="quiet", help="--progress quiet"
    )


_BUILD = """\
Judges every record, checks every image, writes shards, their indexes, rejects.jsonl and
warnings.jsonl, and the manifest last. Killed, it resumes when the same command is given again; the
result depends on inputs and settings alone, not on --workers."""

_FINISH = """\
Writes the lists and the manifest of a data set whose parts were built with build --part I/N, and
names the parts that are missing. The part that ends last does the same by itself; on file systems
whose listings lag behind, this makes sure."""
