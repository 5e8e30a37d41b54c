"""Where each rank stands, in small files that can be read without the run's help.

A rank that hangs can say nothing more, but what it wrote last is still there. No torch is needed to
write or read them. What they are for beside the watchdog: see
:mod:`grpo_stream.train.observe.stragglers`.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER_NAME = "heartbeat"
"""Folder of an output folder with one ``rank-NNNNN.json`` for each rank that beats."""
MAX_RANKS_WITH_FILES = 256
"""With more, only the first rank of each node beats: else they would load a shared disk."""
ENDED = "ended"
"""Stage of a rank whose training has ended: its silence is no sign of anything."""
_MAX_KEYS = 8


@dataclass(frozen=True)
class Beat:
    """Where a rank stood."""

    rank: int
    world_size: int
    host: str
    pid: int
    global_step: int
    stage: str
    time: float
    """Seconds since 1970, by the clock of its node."""
    keys: list[str] = field(default_factory=list)
    """The first few samples in use."""


class Heartbeat:
    """Rewrites this rank's file when it is told to, at most once in a while.

    A folder that cannot be written costs nothing but the beats: training continues.

    Args:
        output_dir: Of the run; shared by the nodes, or each node's own.
        rank: Of this process.
        world_size: Ranks of the run.
        seconds: Least time between two beats.
    """

    def __init__(
        self, output_dir: str | Path, rank: int, world_size: int, seconds: float = 10.0
    ) -> None:
        self._path = Path(output_dir) / FOLDER_NAME / f"rank-{rank:05d}.json"
        self._rank, self._world_size, self._seconds = rank, world_size, seconds
        self._next = 0.0

    def beat(self, global_step: int, stage: str, keys: Sequence[str] = ()) -> None:
        """Says where this rank stands; :data:`ENDED` in any case."""
        now = time.monotonic()
        if now < self._next and stage != ENDED:
            return
        self._next = now + self._seconds
        own = (self._rank, self._world_size, socket.gethostname(), os.getpid())
        beat = Beat(*own, global_step, stage, time.time(), list(keys[:_MAX_KEYS]))
        temp = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temp.write_text(json.dumps(asdict(beat)), encoding="utf-8")
            temp.replace(self._path)
        except OSError:
            return


def read_beats(output_dir: str | Path) -> list[Beat]:
    """The last word of every rank, in order of rank; none where nobody has beaten.

    A file that is none, as a full disk or a crash leaves it, is passed over and named.
    """
    beats = []
    for path in sorted((Path(output_dir) / FOLDER_NAME).glob("rank-*.json")):
        beat = _read(path)
        if beat is None:
            logger.warning("passed over: %s is no heartbeat", path)
        else:
            beats.append(beat)
    return beats


def _read(path: Path) -> Beat | None:
    try:
        beat = Beat(**json.loads(path.read_text(encoding="utf-8")))
        numbers = (beat.rank, beat.world_size, beat.global_step, beat.time)
        texts = (beat.host, beat.stage, *beat.keys)
    except (OSError, ValueError, TypeError):
        return None
    is_sound = all(isinstance(one, int | float) for one in numbers)
    is_sound = is_sound and all(isinstance(one, str) for one in texts)
    return beat if is_sound else None


def missing_ranks(beats: Sequence[Beat]) -> list[int]:
    """Ranks of the newest run in the folder that should beat and never have."""
    if not beats:
        return []
    world_size = max(beats, key=lambda beat: beat.time).world_size
    known = sorted({beat.rank for beat in beats if beat.rank < world_size})
    every = 1
    if world_size > MAX_RANKS_WITH_FILES:  # the first rank of each node, and nodes are alike
        every = min((b - a for a, b in pairwise(known)), default=world_size)
    return sorted(set(range(0, world_size, every)).difference(known))


def table(beats: Sequence[Beat], now: float) -> str:
    """A line for each rank, the one that has been silent for longest first."""
    lines = [f"{'rank':>6} {'silent s':>9} {'step':>8}  {'stage':<14} {'host':<20} samples"]
    lines += [
        f"{beat.rank:>6} {now - beat.time:>9,.0f} {beat.global_step:>8}  {beat.stage:<14} "
        f"{beat.host:<20} {' '.join(beat.keys[:2])}"
        for beat in sorted(beats, key=lambda beat: (beat.time, beat.rank))
    ]
    return "\n".join(lines)
