"""One check before anything expensive: all ranks are about to do the same run."""

from collections.abc import Mapping
from typing import Any

from accelerate.utils import gather_object

from grpo_stream.errors import ConfigError


def check_agreement(settings: Mapping[str, Any]) -> None:
    """Compares ``settings`` over all ranks; a difference would end in a hang or in nonsense.

    Raises:
        ConfigError: on every rank, the same one: the first setting that differs, with the ranks
            that differ from rank 0.
    """
    everyone: list[dict[str, Any]] = gather_object([dict(settings)])
    first = everyone[0]
    for name, value in first.items():
        others = {rank: s.get(name) for rank, s in enumerate(everyone) if s.get(name) != value}
        if others:
            raise ConfigError(
                name,
                value,
                f"is what rank 0 has, but other ranks differ: {others}; all ranks must be started "
                "with the same data and settings",
            )
