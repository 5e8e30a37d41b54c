from datetime import timedelta

import pytest
import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from grpo_stream.errors import ConfigError
from grpo_stream.train.cluster.process_group import (
    bound_waiting,
    is_lost_rank,
    joining_ranks,
    leave_process_group,
)


def test_every_group_waits_as_long_as_the_run_says(tmp_path):
    """Also one that DeepSpeed made, without a time-out, when the first was there."""
    assert not distributed.is_initialized()
    bound_waiting(timedelta(seconds=3))  # of no group: nothing to do
    url = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=url, rank=0, world_size=1)
    try:
        groups = [distributed.group.WORLD, distributed.new_group([0])]
        assert all(seconds_of(group) > 3 for group in groups)
        bound_waiting(timedelta(seconds=3))
        assert [seconds_of(group) for group in groups] == [3, 3]
    finally:
        distributed.destroy_process_group()


def test_all_groups_are_left(tmp_path):
    leave_process_group()  # of no group: nothing to do
    url = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=url, rank=0, world_size=1)
    distributed.new_group([0])
    leave_process_group()
    assert not distributed.is_initialized()


def test_a_taken_port_is_named(monkeypatch):
    first = TCPStore("127.0.0.1", 0, 1, is_master=True)
    monkeypatch.setenv("MASTER_PORT", str(first.port))
    message = f"master_port='{first.port}': is in use on this machine.*--master_port"
    with pytest.raises(ConfigError, match=message), joining_ranks():
        TCPStore("127.0.0.1", first.port, 1, is_master=True)


def test_other_errors_of_the_network_are_left(monkeypatch):
    with pytest.raises(distributed.DistNetworkError, match="gone"), joining_ranks():
        raise distributed.DistNetworkError("gone")


def seconds_of(group):
    backend = group._get_backend(torch.device("cpu"))
    return backend.options._timeout.total_seconds()


# As torch 2.13 words them (NCCLUtils.hpp, ProcessGroupNCCL.cpp).
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3690,"
REMOTE = "ncclRemoteError: A call failed possibly due to a network error"
SYSTEM = "ncclSystemError: System call (e.g. socket, malloc) or external library call failed"
USAGE = "ncclInvalidUsage: This usually reflects invalid usage of NCCL library. Duplicate GPU"
CUDA = "ncclUnhandledCudaError: Call to CUDA function failed."
WATCHDOG = (
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, "
    "Timeout(ms)=1800000) ran for 1800021 milliseconds before timing out."
)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset"), True),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (distributed.DistBackendError(f"{NCCL} remote process exited or ... {REMOTE}"), True),
        (distributed.DistBackendError(f"{NCCL} unhandled system error ... {SYSTEM}"), True),
        (distributed.DistBackendError(WATCHDOG), True),
        (RuntimeError(WATCHDOG), True),
        (RuntimeError("[Rank 1] NCCL communicator was aborted on rank 1."), True),
        (distributed.DistStoreError("wait timeout after 600000ms, keys: /ncclUniqueId"), True),
        (distributed.DistBackendError(f"{NCCL} invalid usage ... {USAGE}"), False),
        (distributed.DistBackendError(f"{NCCL} unhandled cuda error ... {CUDA}"), False),
        (RuntimeError("CUDA out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory while NCCL made its buffers"), False),
        (NotImplementedError("no NCCL on the CPU"), False),
        (ValueError("gloo"), False),
    ],
)
def test_what_means_that_a_rank_was_lost(error, is_lost):
    assert is_lost_rank(error) == is_lost
