"""All ranks compare what they are about to do and what they have, before any weight is loaded.

They talk through the key-value store by which they found one another, not by collectives: so a rank
that says nothing is named within a minute, and only then do all of them meet in an all-reduce.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# The one that init_process_group made; torch has no other way to a store that everyone shares.
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from grpo_stream.stream.world import World
from grpo_stream.train.cluster.node_checks import node_name, probe_node
from grpo_stream.train.cluster.preflight_report import (
    Needs,
    PreflightError,
    Problem,
    RankReport,
    find_problems,
    nodes_of,
)
from grpo_stream.train.cluster.preflight_table import NodeRow, make_table
from grpo_stream.train.cluster.same_settings import differences
from grpo_stream.train.cluster.waiting import waiting_for

_WAIT_SECONDS = 60.0
_ALL_REDUCE_BYTES = {"cpu": 16 * 2**20, "cuda": 64 * 2**20}
_NUM_ALL_REDUCES = 3
_MAX_NAMED = 8


@dataclass(frozen=True)
class RunChecks:
    """What is to be checked."""

    settings: Mapping[str, Any]
    """Must be the same everywhere; ``agreement.run_settings``."""
    urls: Sequence[str]
    """Data sets that every node must be able to read."""
    output_dir: str
    cache_dir: str | None = None
    needs: Needs = field(default_factory=Needs)


def run_preflight(
    checks: RunChecks,
    *,
    say: Callable[[str], None],
    wait_seconds: float = _WAIT_SECONDS,
    name: str = "preflight",
) -> None:
    """Checks that all ranks can do the run together; takes a few seconds.

    Each node's first rank reads up to 8.1 MB of each data set and looks at memory and disks. Then
    clocks are compared, and 16 MiB (64 on GPUs) are all-reduced four times.

    Args:
        checks: The same on every rank, or else that is what it finds.
        say: Gets, on rank 0, a table with a line for each node, and a line about the all-reduce.
        wait_seconds: How long a rank may say nothing.
        name: Another one for each preflight of the same processes.

    Raises:
        PreflightError: on every rank, naming node, what, found and needed.
    """
    started = time.perf_counter()
    is_alone = not dist.is_initialized() or dist.get_world_size() == 1
    world = World()
    inner: Store = dist.HashStore() if is_alone else _get_default_store()  # type: ignore[attr-defined]
    if not is_alone:
        world = World(dist.get_rank(), dist.get_world_size(), World.from_env().local_rank)
    store = PrefixStore(name, inner)
    if world.rank == 0:
        store.set("settings", json.dumps(dict(checks.settings), sort_keys=True, default=str))
    of_first = json.loads(_heard(store, "settings", wait_seconds))
    report = probe_rank(checks, world, of_first)
    store.set(f"report/{world.rank}", report.to_json())
    if world.rank == 0:
        _judge_all(store, world.world_size, checks, of_first, say, wait_seconds)
    else:
        offset = _offset(store, 2 * wait_seconds)
        store.set(f"clock/{world.rank}", repr(offset))
    verdict = _heard(store, "verdict", wait_seconds).decode()
    if verdict:
        _wait_for_all(store, world)
        raise PreflightError(verdict)
    if not is_alone:
        with waiting_for("the preflight's all-reduce"):
            rate = all_reduce_rate()
        if world.rank == 0:
            seconds = time.perf_counter() - started
            say(f"preflight: all-reduce {rate / 1e9:.2f} GB/s a rank; took {seconds:.1f} s")


def probe_rank(checks: RunChecks, world: World, of_first: Mapping[str, Any]) -> RankReport:
    """What this rank, and as the first of a node its node, has and can reach."""
    own = json.loads(json.dumps(dict(checks.settings), default=str))
    gpu_bytes = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    node = None
    if world.local_rank == 0:
        node = probe_node(checks.urls, checks.output_dir, checks.cache_dir, world.rank)
    found = differences(of_first, own)
    return RankReport(world.rank, world.local_rank, node_name(), found, gpu_bytes, node)


def all_reduce_rate() -> float:
    """Bytes per second that a rank sends, and receives, in an all-reduce over all ranks.

    Bytes / seconds * 2 (n - 1) / n, the "bus bandwidth" of NVIDIA's nccl-tests
    (doc/PERFORMANCE.md), which compares with the speed of a link whatever n is.
    """
    kind = "cuda" if "nccl" in str(dist.get_backend()) else "cpu"
    num_bytes, num_ranks = _ALL_REDUCE_BYTES[kind], dist.get_world_size()
    data = torch.zeros(num_bytes // 4, device=kind)
    dist.all_reduce(data)  # the first one opens the connections
    _synchronize(kind)
    start = time.perf_counter()
    for _ in range(_NUM_ALL_REDUCES):
        dist.all_reduce(data)
    _synchronize(kind)
    seconds = (time.perf_counter() - start) / _NUM_ALL_REDUCES
    return num_bytes / seconds * 2 * (num_ranks - 1) / num_ranks


def _judge_all(
    store: Store,
    world_size: int,
    checks: RunChecks,
    of_first: Mapping[str, Any],
    say: Callable[[str], None],
    wait_seconds: float,
) -> None:
    texts = _collect(store, "report", range(world_size), wait_seconds)
    reports = [RankReport.from_json(texts[rank]) for rank in sorted(texts)]
    silent = [rank for rank in range(world_size) if rank not in texts]
    store.set("time", repr(time.time()))
    nodes = nodes_of(reports)
    firsts = [node.first.rank for node in nodes if node.first.rank]
    clocks = {0: 0.0}
    for rank, text in _collect(store, "clock", firsts, wait_seconds).items():
        clocks[rank] = float(text)
    problems = find_problems(reports, clocks, checks.needs, of_first)
    if silent:
        where = f"rank {', '.join(map(str, silent[:_MAX_NAMED]))}"
        found = f"{len(silent)} of {world_size} ranks silent for {wait_seconds:.0f} s"
        needed = "every rank started; see what their logs end with"
        problems.insert(0, Problem(where, "preflight", found, needed))
    rows = [
        NodeRow.of_node(
            node.first.host,
            [report.rank for report in node.ranks],
            node.found,
            [report.gpu_bytes for report in node.ranks if report.gpu_bytes is not None],
            clocks.get(node.first.rank),
        )
        for node in nodes
    ]
    say(make_table(rows, world_size))
    lines = [str(problem) for problem in problems[:_MAX_NAMED]]
    if len(problems) > _MAX_NAMED:
        lines.append(f"and {len(problems) - _MAX_NAMED} more")
    store.set("verdict", "\n  ".join(lines))


def _heard(store: Store, key: str, seconds: float) -> bytes:
    """What rank 0 says under ``key``."""
    try:
        with waiting_for(f"rank 0 in the preflight ({key})"):
            store.wait([key], timedelta(seconds=seconds))
    except RuntimeError as error:
        raise PreflightError(f"rank 0: preflight: no word ({key}) for {seconds:.0f} s") from error
    return bytes(store.get(key))


def _offset(store: Store, seconds: float) -> float:
    """Seconds that this clock is ahead of rank 0's, too high by a message's way (milliseconds)."""
    told = float(_heard(store, "time", seconds))
    return time.time() - told


def _collect(store: Store, name: str, ranks: Sequence[int], seconds: float) -> dict[int, bytes]:
    """What ranks said under a name, as soon as all have; after ``seconds`` of those that have."""
    keys = {rank: f"{name}/{rank}" for rank in ranks}
    try:
        if keys:
            with waiting_for("other ranks in the preflight"):
                store.wait(list(keys.values()), timedelta(seconds=seconds))
    except RuntimeError:
        keys = {rank: key for rank, key in keys.items() if store.check([key])}
    return {rank: bytes(store.get(key)) for rank, key in keys.items()}


def _wait_for_all(store: Store, world: World) -> None:
    """Rank 0 may hold the store: it must not end before the others have heard."""
    store.set(f"heard/{world.rank}", "")
    if world.rank == 0:
        _collect(store, "heard", range(world.world_size), 5.0)


def _synchronize(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()
