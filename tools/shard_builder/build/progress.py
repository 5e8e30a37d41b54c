"""How far a build is, as a bar for people or as JSON lines for batch jobs."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TextIO

from tqdm import tqdm

ProgressMode = Literal["bar", "json", "quiet"]


@dataclass(frozen=True)
class Progress:
    """A moment of long work."""

    phase: str
    """Of a build: ``read`` (the inputs, first pass), ``build``, ``finish`` (lists, manifest); of
    a build in parts ``plan`` comes before ``build``."""
    num_total: int | None
    """Records or samples in all; None while they are being counted."""
    num_records: int = 0
    """Done so far, those of an earlier run of this build included."""
    num_rejects: int = 0
    num_image_bytes: int = 0
    """Bytes of the images that were taken."""


Tell = Callable[[Progress], None]


def tell_nobody(progress: Progress) -> None:
    """Keeps quiet."""


@contextmanager
def show_progress(mode: ProgressMode, file: TextIO | None = None) -> Iterator[Tell]:
    """Gives a function that shows what it is told.

    Args:
        mode: ``bar`` draws one bar a phase, ``json`` writes a line every second and at the end of
            each phase, ``quiet`` shows nothing.
        file: Where to; None takes stderr.
    """
    if mode == "quiet":
        yield tell_nobody
        return
    shown = _Bars(file) if mode == "bar" else _Lines(file or sys.stderr)
    try:
        yield shown.tell
    finally:
        shown.close()


def num_usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Bars:
    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._bar: tqdm[Any] | None = None
        self._started = time.monotonic()
        self._phase = ""
        self._first_bytes = self._first_samples = 0

    def tell(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self.close()
            self._phase = progress.phase
            self._started = time.monotonic()
            self._first_bytes = progress.num_image_bytes
            self._first_samples = progress.num_records - progress.num_rejects
            self._bar = tqdm(
                desc=progress.phase,
                total=progress.num_total,
                initial=progress.num_records,
                unit=" records" if progress.phase in ("read", "plan", "build") else " samples",
                file=self._file,
                bar_format="{desc} [{elapsed}]" if progress.phase == "finish" else None,
            )
        assert self._bar is not None  # noqa: S101 - for the type checker
        if progress.num_image_bytes:
            seconds = max(time.monotonic() - self._started, 1e-3)
            speed = (progress.num_image_bytes - self._first_bytes) / 1e6 / seconds
            num_samples = progress.num_records - progress.num_rejects - self._first_samples
            words = f"{num_samples / seconds:.0f} samples/s, {speed:.1f} MB/s"
            if progress.phase == "build":
                words += f", {progress.num_rejects} rejects"
            self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(progress.num_records - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Lines:
    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._last: Progress | None = None
        self._shown: Progress | None = None
        self._first = 0
        self._started = self._next = 0.0

    def tell(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._last is None or progress.phase != self._last.phase:
            self.close()
            self._started, self._first = now, progress.num_records
            self._next = 0.0
        self._last = progress
        if now >= self._next:
            self._write(progress)
            self._next = now + 1

    def close(self) -> None:
        if self._last is not None and self._last != self._shown:
            self._write(self._last)

    def _write(self, progress: Progress) -> None:
        seconds = time.monotonic() - self._started
        done = progress.num_records - self._first
        line = asdict(progress) | {"seconds": round(seconds, 3), "eta_seconds": None}
        if progress.num_total is not None and done > 0:
            left = progress.num_total - progress.num_records
            line["eta_seconds"] = round(seconds / done * left, 1)
        print(json.dumps(line), file=self._file, flush=True)
        self._shown = progress
