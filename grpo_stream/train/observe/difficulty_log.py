"""How hard each sample is for the policy, kept over the run: one line per group and rollout."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from transformers.utils import logging

from grpo_stream.train.observe.rollout_sheets import reward_std

logger = logging.get_logger("grpo_stream.train")

FILE_NAME = "difficulty.jsonl"
"""File of an output folder."""


class Difficulty(NamedTuple):
    """What one rollout says of a sample."""

    key: str
    global_step: int
    """Updates that the policy had been through."""
    mean: float | None
    """Mean reward of its completions; None where no reward applied."""
    std: float
    """Standard deviation of their rewards; at 0 they taught nothing."""


class DifficultyLog:
    """Appends the groups of all ranks to ``difficulty.jsonl``.

    A generation batch that is sampled again after a resume is written again: of equal key and
    global step the later line counts.

    A disk that takes no more ends the log, not the run.

    Args:
        folder: The run's output folder.
        is_writing: Rank 0 writes; all ranks must call :meth:`add`, which gathers their keys.
    """

    def __init__(self, folder: Path, *, is_writing: bool) -> None:
        self._path = folder / FILE_NAME
        self._is_writing = is_writing

    def add(self, global_step: int, keys: Sequence[str], rewards: NDArray[np.float32]) -> None:
        """Adds a rollout.

        Args:
            global_step: Updates so far.
            keys: Of this rank's groups.
            rewards: Of all ranks' groups in rank order, shape (groups of all ranks, G).
        """
        everyone: list[str] = gather_object(list(keys))
        if not self._is_writing:
            return
        lines = []
        for key, group in zip(everyone, rewards, strict=True):
            known = group[~np.isnan(group)]
            mean = float(known.mean()) if known.size else None
            found = Difficulty(key, global_step, mean, reward_std(group))
            lines.append(json.dumps(found._asdict(), ensure_ascii=False) + "\n")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            logger.warning("no more is written to %s: %s", self._path, error.strerror)
            self._is_writing = False


def read_difficulty(path: Path) -> Iterator[Difficulty]:
    """The lines of a log in order; one that a crash or a full disk has cut off is left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):  # a resumed run continued that line
                yield Difficulty(**json.loads(line))
