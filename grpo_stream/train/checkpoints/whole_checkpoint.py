"""Whole checkpoints: what makes one, and which one a run resumes from.

A checkpoint is a folder of many files, written by all ranks. Killed while it is written, it looks
like one and is none. So ``complete.json`` is written last, when everything else is on the disk; it
lists the files and their sizes. No ``complete.json``, or a file that is not as it says: no
checkpoint.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.checkpoints.run_id import read_run_id

MARKER_NAME = "complete.json"
"""File of a checkpoint that is written last."""
_VERSION = 1
_NAME = re.compile(r"checkpoint-[0-9]+")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Marker:
    """What ``complete.json`` holds."""

    num_ranks: int
    """World size that wrote the checkpoint."""
    zero_stage: int | None
    """Of DeepSpeed; None without it."""
    is_resumable: bool
    """False with ``save_only_model``: there is no optimizer to resume with."""
    files: dict[str, int]
    """Path in the checkpoint -> bytes."""
    run_id: str = ""
    """Of the run, see :mod:`grpo_stream.train.checkpoints.run_id`; empty in older checkpoints."""
    sequence: int = 0
    """Counts the checkpoints of a folder in the order in which they were sealed, from 1."""

    def __post_init__(self) -> None:
        is_sound = (
            type(self.num_ranks) is int
            and (self.zero_stage is None or type(self.zero_stage) is int)
            and type(self.is_resumable) is bool
            and type(self.files) is dict
            and all(type(size) is int for size in self.files.values())
            and type(self.run_id) is str
            and type(self.sequence) is int
        )
        if not is_sound:
            raise TypeError("a value is of another kind than it should be")
        for name in self.files:
            if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                raise ValueError(f"{name!r} is no file of the checkpoint")


def begin(folder: Path) -> None:
    """Makes ``folder`` empty for a checkpoint; what an interrupted writing left there goes."""
    if folder.exists():
        (folder / MARKER_NAME).unlink(missing_ok=True)  # first: the rest goes file by file
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def sync(folder: Path) -> None:
    """Waits until every file of ``folder`` that this node has written is on the disk."""
    for path in [*_files(folder), *_folders(folder)]:
        _sync(path)


def seal(
    folder: Path,
    *,
    num_ranks: int,
    zero_stage: int | None,
    is_resumable: bool = True,
    run_id: str = "",
    sequence: int = 0,
) -> None:
    """Declares a checkpoint whole; every rank has written and synced its files."""
    (folder / MARKER_NAME).unlink(missing_ok=True)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(_files(folder))}
    marker = Marker(num_ranks, zero_stage, is_resumable, files, run_id, sequence)
    part = folder / f"{MARKER_NAME}.part"
    part.write_text(json.dumps({"version": _VERSION} | asdict(marker), indent=1))
    _sync(part)
    part.replace(folder / MARKER_NAME)
    for path in (folder, folder.parent):
        _sync(path)


def read_marker(folder: Path) -> Marker:
    """The marker of a checkpoint.

    Raises:
        CheckpointError: there is none, or none that this program reads.
    """
    path = folder / MARKER_NAME
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for a writer
            raise ValueError("it is no file")
        content: Any = json.loads(path.read_bytes())
        version = content.pop("version")
        if version == _VERSION:
            return Marker(**content)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} is no whole checkpoint: it has no {MARKER_NAME}, so its writing was "
            "interrupted; resume from an older one"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is damaged ({cause}); resume from an older one") from error
    raise CheckpointError(f"{path} has version {version}, and this program reads {_VERSION}")


def check_files(folder: Path, marker: Marker) -> None:
    """Compares the files of a checkpoint with its marker; costs one look at each.

    Raises:
        CheckpointError: one is missing, or has another size.
    """
    for name, num_bytes in marker.files.items():
        found = _size(folder / name)
        if found != num_bytes:
            what = "is missing" if found is None else f"has {found} bytes in place of {num_bytes}"
            raise CheckpointError(
                f"{folder} is no whole checkpoint: {name} {what}; resume from an older one"
            )


def checkpoints_in(output_dir: Path) -> list[tuple[Path, Marker | None]]:
    """Every checkpoint of a folder, in the order of their sealing, with its marker.

    Those that nobody has counted come first, by global step: interrupted ones, which have no
    marker, and those of older versions. A clock has no say in it.
    """
    paths = output_dir.iterdir() if output_dir.is_dir() else ()
    found = [(path, _marker_of(path)) for path in paths if _NAME.fullmatch(path.name)]
    return sorted(found, key=_order)


def others_in(output_dir: Path, run_id: str) -> list[Path]:
    """The checkpoints of a folder that another run has sealed."""
    found = checkpoints_in(output_dir)
    return [path for path, marker in found if marker is not None and marker.run_id != run_id]


def next_sequence(output_dir: Path) -> int:
    """What the next checkpoint of a folder is counted as."""
    markers = (marker for _, marker in checkpoints_in(output_dir) if marker is not None)
    return 1 + max((marker.sequence for marker in markers), default=0)


def step_of(checkpoint: Path) -> int:
    """The global step that a checkpoint's name tells."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def find_checkpoints(output_dir: Path, run_id: str | None = None) -> tuple[list[Path], list[str]]:
    """The checkpoints of a run that can be resumed from, newest first, and why others cannot.

    Args:
        output_dir: Of the run.
        run_id: Of the run; None: of any run.
    """
    found, faults = [], []
    for path, marker in reversed(checkpoints_in(output_dir)):
        fault = _fault_of(path)
        if fault is None and marker is not None and run_id not in (None, marker.run_id):
            fault = f"{path} is of another run ({marker.run_id or 'without an id'})"
        if fault is None:
            found.append(path)
        else:
            faults.append(fault)
    return found, faults


def choose_checkpoint(value: str | None, output_dir: Path, *, looks: bool) -> Path | None:
    """The checkpoint to begin from; None: anew. Every rank must call this.

    Args:
        value: ``auto``: the last whole one, if any, so that one command serves the first start and
            every restart. ``true``: the last whole one. ``false`` or None: none. Else its path.
        output_dir: Of the run.
        looks: See :func:`last_checkpoint`.

    Raises:
        ConfigError: there is no such folder, or with ``true`` no whole checkpoint.
    """
    name, word = "resume_from_checkpoint", (value or "false").lower()
    if word == "false":
        return None
    if word in ("auto", "true"):
        found = last_checkpoint(output_dir, looks=looks)
        if found is None and word == "true":
            expected = f"finds no whole checkpoint in {output_dir}; auto would begin anew"
            raise ConfigError(name, value, expected)
        return found
    path = Path(value or "")
    if not path.is_dir():
        raise ConfigError(name, value, "is no folder; give one, or auto, or true")
    return path


def last_checkpoint(output_dir: Path, *, looks: bool) -> Path | None:
    """The newest checkpoint that is whole wherever a rank looked: the same on every rank.

    Every rank must call this. Ranks of one node, and those of all nodes where ``output_dir`` is
    shared, see the same files: it is enough that one of them looks.

    Args:
        output_dir: Of the run; where it names a present run, only that one's checkpoints count.
        looks: Whether this rank looks into it, and names what it passes over.
    """
    found: Sequence[Path] = ()
    if looks:
        found, faults = find_checkpoints(output_dir, read_run_id(output_dir))
        for fault in faults:
            logger.warning("passed over: %s", fault)
    seen: list[list[str] | None] = gather_object([[p.name for p in found] if looks else None])
    names = next(one for one in seen if one is not None)
    for name in names:
        if all(name in one for one in seen if one is not None):
            return output_dir / name
    return None


def _order(found: tuple[Path, Marker | None]) -> tuple[bool, int, int]:
    path, marker = found
    return marker is not None, 0 if marker is None else marker.sequence, step_of(path)


def _marker_of(folder: Path) -> Marker | None:
    try:
        return read_marker(folder)
    except CheckpointError:
        return None


def _fault_of(folder: Path) -> str | None:
    try:
        marker = read_marker(folder)
        check_files(folder, marker)
    except CheckpointError as error:
        return str(error)
    return None if marker.is_resumable else f"{folder} holds the model only (save_only_model)"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (path for path in folder.rglob("*") if path.is_dir())


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
