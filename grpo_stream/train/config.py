"""The former place of :mod:`grpo_stream.train.setup.arguments`; for version 0.1 alone."""

import warnings

from grpo_stream.train.setup.arguments import (
    DataArguments,
    LogArguments,
    RunArguments,
    TaskArguments,
)

__all__ = ["DataArguments", "LogArguments", "RunArguments", "TaskArguments"]

warnings.warn(
    "grpo_stream.train.config has moved: import from grpo_stream.train.setup.arguments",
    DeprecationWarning,
    stacklevel=2,
)
