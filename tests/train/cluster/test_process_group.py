from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from grpo_stream.errors import ConfigError
from grpo_stream.train.cluster.process_group import (
    is_lost_rank,
    joining_ranks,
    leave_process_group,
    set_collective_timeout,
)

ROOT = Path(__file__).parents[3]


def test_every_group_waits_as_long_as_the_run_says(tmp_path):
    """Also one that DeepSpeed made, without a time-out, when the first was there."""
    assert not distributed.is_initialized()
    set_collective_timeout(timedelta(seconds=3))  # of no group: nothing to do
    url = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=url, rank=0, world_size=1)
    try:
        groups = [distributed.group.WORLD, distributed.new_group([0])]
        assert all(seconds_of(group) > 3 for group in groups)
        set_collective_timeout(timedelta(seconds=3))
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


# A result of NCCL, as torch 2.8 to 2.13 words it (C10D_NCCL_CHECK, getNcclErrorDetailStr).
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, "
REMOTE = (
    "remote process exited or there was a network error, NCCL version 2.27.5\nncclRemoteError: A "
    "call failed possibly due to a network error or a remote process exiting prematurely.\n"
    "Last error:\nsocketProgressOpt: Call to recv from 10.0.0.2<46250> failed"
)
SYSTEM = (
    "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n"
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device "
    "error.\nLast error:\n"
)
USAGE = (
    "invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5\nncclInvalidUsage: "
    "This usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected"
)
CUDA = "unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed."
INTERNAL = "internal error\nncclInternalError: Internal check failed.\nLast error:\n"
WATCHDOG = (
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, "
    "NumelIn=112, NumelOut=112, Timeout(ms)=1800000) ran for 1800021 milliseconds before timing "
    "out."
)
ABORTED = "NCCL communicator was aborted on rank 1. "
UNIQUE_ID = (
    "[2] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value "
    "store by key '0', but store->get('0') got error: wait timeout after 600000ms, keys: "
    "/0//cuda//0"
)
FAILED = (
    "[Rank 1] Some NCCL operations have failed or timed out. Due to the asynchronous nature of "
    "CUDA kernels, subsequent GPU operations might run on corrupted/incomplete data."
)
BACKEND = distributed.DistBackendError

LOST = [
    RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset"),
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out"),
    RuntimeError("Application timeout caused pair closure"),
    RuntimeError("Connection closed by peer [10.0.0.2]:4711"),
    BACKEND(f"{NCCL}{REMOTE}"),
    BACKEND(f"{NCCL}{SYSTEM}Call to recv from 10.0.0.2<46250> failed : Connection reset by peer"),
    BACKEND(f"{NCCL}{INTERNAL}Net : Connect to 10.0.0.2<46250> failed : Connection refused"),
    BACKEND(f"{ABORTED} Original reason for failure was: NCCL error: {REMOTE}"),
    BACKEND(f"{ABORTED} Original reason for failure was: {WATCHDOG}"),
    BACKEND("NCCL timeout in communicator initialization."),
    BACKEND(f"NCCL error: {WATCHDOG}"),
    BACKEND(WATCHDOG),
    BACKEND(FAILED),
    BACKEND(UNIQUE_ID),
    RuntimeError(ABORTED),
    RuntimeError(WATCHDOG),
    RuntimeError(FAILED),
    RuntimeError(f"NCCL error: {REMOTE}"),
    distributed.DistStoreError("wait timeout after 600000ms, keys: /ncclUniqueId"),
    distributed.DistNetworkError(
        "The client socket has timed out after 600000ms while trying to connect to (node-0, 29500)."
    ),
    distributed.DistNetworkError(
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown "
        "or crash?"
    ),
]


class EngineError(RuntimeError):
    """Of a library that uses NCCL for itself."""


NOT_LOST = [
    BACKEND(f"{NCCL}{USAGE}"),
    BACKEND(f"{NCCL}{CUDA}"),
    BACKEND(f"{NCCL}{INTERNAL}Bootstrap : no socket interface found"),
    BACKEND(
        f"{NCCL}{SYSTEM}Error while creating shared memory segment /dev/shm/nccl-vzIpS6 (size "
        "9637888), error: No space left on device (28)"
    ),
    RuntimeError("Distributed package doesn't have NCCL built in"),
    RuntimeError(
        "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:446] "
        "op.preamble.length <= op.nbytes. 4096 vs 4"
    ),
    RuntimeError("CUDA out of memory"),
    RuntimeError("NCCL_SOCKET_IFNAME is set"),
    torch.OutOfMemoryError("CUDA out of memory while NCCL made its buffers"),
    torch.AcceleratorError("CUDA error: an illegal memory access, found by NCCL error checks", 700),
    EngineError(f"the engine's weights could not be sent: {ABORTED}"),
    NotImplementedError("no NCCL on the CPU"),
    ValueError("ProcessGroupNCCL is only supported with GPUs, no GPUs found!"),
    ValueError("gloo/"),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:40])
def test_what_means_that_a_rank_was_lost(error):
    assert is_lost_rank(error)


@pytest.mark.parametrize("error", NOT_LOST, ids=lambda error: str(error)[:40])
def test_what_does_not(error):
    assert not is_lost_rank(error)


def test_an_installation_without_nccl_is_no_lost_rank(monkeypatch):
    monkeypatch.setattr(distributed.distributed_c10d, "_NCCL_AVAILABLE", False)
    with pytest.warns(UserWarning, match="NCCL"), pytest.raises(RuntimeError) as caught:
        distributed.init_process_group("nccl", store=HashStore(), rank=0, world_size=1)
    assert "NCCL" in str(caught.value)
    assert not is_lost_rank(caught.value)


OF_THE_WATCHDOG = (
    "Watchdog caught collective operation timeout",
    "Process group watchdog thread terminated with exception",
    "Some NCCL operations have failed or timed out",
    "Heartbeat monitor timed out",
    "ProcessGroupNCCL's watchdog got stuck for",
)
"""What is written by a thread of torch's that ends the process: no line of Python's comes after."""


@pytest.mark.parametrize("words", OF_THE_WATCHDOG)
def test_what_no_code_can_catch_is_explained(words):
    assert words in (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
