"""Joining the other ranks, and not waiting for them for ever."""

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_stream.errors import ConfigError
from grpo_stream.stream.world import find_world
from grpo_stream.train.cluster.operator_lock import use_operators_of_venv, wait_for_compilers
from grpo_stream.train.cluster.waiting import waiting_for

_ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",  # any free one: a dry run beside a training run must not take its port
}
"""torch's variables for a process that no launcher started."""

_LOST = (
    "gloo/",  # a file of its sources, in nearly all of its errors
    "Connection closed by peer",
    "Application timeout caused pair closure",
    "TCPStore",
    "NCCL error",  # a result, with its name behind it
    "NCCL communicator was aborted",
    "NCCL timeout in communicator initialization",
    "Some NCCL operations have failed or timed out",
    "Watchdog caught collective operation timeout",
)
"""Words of torch's errors when another rank does not answer; those of gloo are RuntimeErrors.

Those of NCCL: torch 2.8 to 2.13, ProcessGroupNCCL.cpp and NCCLUtils.cpp.
"""

_OWN_FAULT = (
    "ncclInvalidArgument",
    "ncclInvalidUsage",  # two ranks on one GPU, for example
    "ncclUnhandledCudaError",
    "no socket interface found",  # NCCL_SOCKET_IFNAME names none of this node
    "shared memory segment",  # a container whose /dev/shm is too small
    "enforce fail",  # gloo's, when ranks come with tensors of different sizes
)
"""What is of this rank alone, or a mistake in the program, though the same errors say it."""


def start_process_group(*, use_cpu: bool) -> None:
    """Joins the other ranks; one process alone becomes a world of one.

    Before that it waits for whoever compiles DeepSpeed's operators here
    (:mod:`grpo_stream.train.cluster.operator_lock`).

    On the CPU this must come before a model is loaded: ``zero.Init`` otherwise takes the world
    size for 1 and every rank would hold all weights. On a GPU ``GRPOConfig`` joins.

    Raises:
        ConfigError: see :func:`grpo_stream.stream.world.find_world`, :func:`joining_ranks` and
            :func:`~grpo_stream.train.cluster.operator_lock.wait_for_compilers`.
    """
    find_world()
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    use_operators_of_venv()
    wait_for_compilers(removes_stale=os.environ["LOCAL_RANK"] == "0")
    if use_cpu:
        import deepspeed  # noqa: PLC0415 - slow to import, and not needed here on a GPU

        with contextlib.redirect_stdout(sys.stderr), joining_ranks():
            deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def ignore_launcher() -> None:
    """Forgets a launcher that has started this process alone, so that nothing joins ranks."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)


@contextlib.contextmanager
def joining_ranks() -> Iterator[None]:
    """Around what joins ranks: says whom it waits for, and names another program at their port.

    Raises:
        ConfigError: the port at which rank 0 was to wait for the others is taken.
    """
    try:
        with waiting_for(_whom):
            yield
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ.get("MASTER_PORT")
        expected = (
            "is in use on this machine, perhaps by another run; start with another one, as in"
        )
        raise ConfigError("master_port", port, f"{expected} --master_port 29511") from error


def _whom() -> str:
    host, port = (os.environ.get(f"MASTER_{name}", "?") for name in ("ADDR", "PORT"))
    size = os.environ.get("WORLD_SIZE", "1")
    return f"the other ranks of {size} to come to {host}:{port}; their own logs say where they are"


def leave_process_group() -> None:
    """Leaves the other ranks when all have come here; nothing where no group was joined.

    A process that ends with its groups open may abort on the way: gloo's threads are still there
    (seen with torch 2.13), and a run that was a success has failed.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def set_collective_timeout(timeout: timedelta) -> None:
    """Sets how long a collective of any process group waits for the other ranks.

    ``ddp_timeout`` is for the first group alone. DeepSpeed 0.19 makes others for ZeRO and leaves
    them at torch's defaults, 10 minutes with NCCL and 30 with gloo, and a first one on the CPU too.
    """
    if torch.distributed.is_initialized():
        for group in list(torch.distributed.distributed_c10d._world.pg_map):  # noqa: SLF001
            torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)  # noqa: SLF001


class CollectiveTimeout(TrainerCallback):
    """:func:`set_collective_timeout` for the groups that are there when training begins."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002 - transformers' signature
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Overrides ``TrainerCallback.on_train_begin`` (transformers 5.23)."""
        set_collective_timeout(args.ddp_timeout_delta)


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error means that another rank has gone, or did not answer in time.

    NCCL's watchdog, a thread of torch's, ends the process by itself: that is no error here
    (docs/cluster.md).
    """
    if any(word in str(error) for word in _OWN_FAULT):
        return False
    if isinstance(error, torch.distributed.DistError):
        return True
    # None of its subclasses: CUDA's errors are, and an engine's that only speaks of NCCL.
    return type(error) is RuntimeError and any(word in str(error) for word in _LOST)
