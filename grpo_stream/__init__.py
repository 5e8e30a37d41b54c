"""Streaming, large-scale GRPO for visual grounding.

What most people need is here by name; the rest is in the package of its floor, which
docs/architecture.md draws. Importing this package imports nothing else: a name is looked up when it
is first used, so the data half does without torch.

    from grpo_stream import PersonalizedGRPOTrainer, PromptLoader, PromptStream, StreamConfig
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_stream.grounding.answers import parse_answer
    from grpo_stream.grounding.rewards import load_reward
    from grpo_stream.stream.config import StreamConfig
    from grpo_stream.stream.loader import PromptLoader
    from grpo_stream.stream.prompt_stream import PromptStream
    from grpo_stream.train.trainer import PersonalizedGRPOTrainer

__version__ = "0.1.0"

__all__ = [
    "PersonalizedGRPOTrainer",
    "PromptLoader",
    "PromptStream",
    "StreamConfig",
    "__version__",
    "load_reward",
    "parse_answer",
]

_MODULES = {
    "PersonalizedGRPOTrainer": "grpo_stream.train.trainer",
    "PromptLoader": "grpo_stream.stream.loader",
    "PromptStream": "grpo_stream.stream.prompt_stream",
    "StreamConfig": "grpo_stream.stream.config",
    "load_reward": "grpo_stream.grounding.rewards",
    "parse_answer": "grpo_stream.grounding.answers",
}
"""Public name -> where it is."""


if not TYPE_CHECKING:  # a type checker would take it for any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value  # found at once from now on
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
