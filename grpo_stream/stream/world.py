"""Who this process is. The one place that reads the launcher's environment."""

import os
import re
from collections.abc import Mapping
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
        """Reads ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; one process alone where unset.

        Raises:
            ConfigError: one of the first two without the other, or no number.
        """
        world_size = _number("WORLD_SIZE", 1)
        if "RANK" in os.environ and "WORLD_SIZE" not in os.environ:
            raise _missing("WORLD_SIZE", "RANK")
        if "RANK" not in os.environ and world_size > 1:
            raise _missing("RANK", "WORLD_SIZE")
        return cls(_number("RANK", 0), world_size, _number("LOCAL_RANK", 0))

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


def find_world() -> World:
    """Completes the environment by :func:`torch_variables`; who this process is.

    Raises:
        ConfigError: half of what a launcher sets is there. Ranks would wait for others that nobody
            has started, and say in the end that those have gone.
    """
    os.environ.update(torch_variables(os.environ))
    world = World.from_env()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if world.world_size > 1 and name not in os.environ:
            raise _missing(name, "WORLD_SIZE")
    return world


def torch_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch wants to find in the environment, for ranks that srun or mpirun started.

    ``deepspeed --launcher slurm`` and ``--launcher openmpi`` start their ranks so. Variables that
    are there already are left alone.

    Returns:
        ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``, those that
        are missing; nothing where another launcher has set ``RANK``, or there is none.

    Raises:
        ConfigError: the ranks are on several nodes, and nothing tells on which of them rank 0 is.
    """
    if "RANK" in environment:
        return {}
    for rank, world_size, local_rank in _NAMES:
        if rank in environment and world_size in environment:
            found = {
                "RANK": environment[rank],
                "WORLD_SIZE": environment[world_size],
                "LOCAL_RANK": environment.get(local_rank, "0"),
                "MASTER_ADDR": _address_of_rank_0(environment),
                "MASTER_PORT": _port(environment.get("SLURM_JOB_ID", "0")),
            }
            return {name: value for name, value in found.items() if name not in environment}
    return {}


def first_host(node_list: str) -> str:
    """The first name of Slurm's short form: of ``gpu[07-12,20],login1`` it is ``gpu07``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", node_list)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else "")


_NAMES = (
    # srun's own: the script of sbatch itself has SLURM_PROCID too, but is no task of a step.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)
"""Rank, world size and local rank, as srun and Open MPI call them."""


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        expected = f"must be a whole number, for example {default}: a launcher's variable"
        raise ConfigError(name, text, expected) from None


def _missing(name: str, beside: str) -> ConfigError:
    expected = (
        f"is missing in the environment, beside {beside}={os.environ[beside]}: start the ranks by "
        f"a launcher (deepspeed, torchrun), or unset {beside} for one process alone"
    )
    return ConfigError(name, None, expected)


def _address_of_rank_0(environment: Mapping[str, str]) -> str:
    if "MASTER_ADDR" in environment:
        return environment["MASTER_ADDR"]
    if node_list := environment.get("SLURM_STEP_NODELIST"):
        return first_host(node_list)
    sizes = (environment.get(f"OMPI_COMM_WORLD_{name}SIZE") for name in ("", "LOCAL_"))
    if len(set(sizes)) == 1:
        return "127.0.0.1"
    expected = "must be set to the host of rank 0: a line MASTER_ADDR=HOST in .deepspeed_env"
    raise ConfigError("MASTER_ADDR", None, f"{expected}, or mpirun -x MASTER_ADDR=HOST")


def _port(job_id: str) -> str:
    """One below those that systems give out, another one for another job of Slurm."""
    return str(20_000 + int(job_id) % 10_000)
