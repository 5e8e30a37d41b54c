"""The former place of :mod:`grpo_stream.train.observe.difficulty_log`; for version 0.1 alone."""

import warnings

from grpo_stream.train.observe.difficulty_log import (
    FILE_NAME,
    Difficulty,
    DifficultyLog,
    read_difficulty,
)

__all__ = ["FILE_NAME", "Difficulty", "DifficultyLog", "read_difficulty"]

warnings.warn(
    "grpo_stream.train.difficulty has moved: import from grpo_stream.train.observe.difficulty_log",
    DeprecationWarning,
    stacklevel=2,
)
