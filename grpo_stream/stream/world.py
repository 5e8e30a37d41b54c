"""Who this process is. The one place that reads the launcher's environment."""

import os
from dataclasses import dataclass

from grpo_stream.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among all processes of the run, as every launcher of torch names it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            expected = f"must be from 0 to world_size-1={self.world_size - 1}"
            raise ConfigError("rank", self.rank, expected)

    @classmethod
    def from_env(cls) -> "World":
        """Reads ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; one process alone where unset."""
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        )

    def slots(self, num_lanes: int) -> range:
        """The contiguous run of prompt slots of a generation batch that this rank owns.

        Raises:
            ConfigError: the world size does not divide ``num_lanes``.
        """
        if num_lanes % self.world_size:
            fits = [w for w in range(1, num_lanes + 1) if num_lanes % w == 0]
            raise ConfigError(
                "world_size",
                self.world_size,
                f"must divide the {num_lanes} prompts of a generation batch; these do: {fits}",
            )
        per_rank = num_lanes // self.world_size
        return range(self.rank * per_rank, (self.rank + 1) * per_rank)
