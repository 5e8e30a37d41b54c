"""Times the order of a data set of a cluster's size: no data, arithmetic alone.

Each part is run twice: for its time, and under ``tracemalloc`` for its peak memory and what of it
stays.
"""

import argparse
import hashlib
import time
import tracemalloc
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np

from benchmarks.command_line import Commands, new_command
from benchmarks.loaders.figures import Row, show
from grpo_stream.order.stream_plan import SourceCounts, StreamPlan
from grpo_stream.shards.manifest import MANIFEST_VERSION, Manifest, ShardInfo
from grpo_stream.stream.world import World

_EPILOG = """\
open       the plan of an epoch from the number of samples of each shard
first      and the places of a rank's first 16 generation batches
resume     the same at nine tenths of the epoch, from a new plan
locate     16 batches more; microseconds of one sample of one rank
epoch      the first batches of the next epoch, with a permutation of its own
manifest   reading a manifest of that many shards, once for its time and memory: not in the others
"""
_BATCHES = 16


def add_command(commands: Commands) -> None:
    """Adds ``plan`` to the command line."""
    command = new_command(commands, "plan", "the order at a cluster's size", __doc__, _EPILOG)
    add = command.add_argument
    add("--num-shards", type=int, default=10**6, help="(%(default)s)")
    add("--samples-per-shard", type=int, default=700, help="mean (%(default)s)")
    add("--ranks", type=int, default=10**4, help="(%(default)s)")
    add("--prompts-per-rank", type=int, default=8, help="of a generation batch (%(default)s)")
    add("--no-manifest", action="store_true", help="leave the manifest out; it takes a minute")
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints seconds, megabytes and microseconds."""
    counts = np.random.default_rng(0).integers(
        args.samples_per_shard // 2, args.samples_per_shard * 3 // 2 + 1, args.num_shards
    )
    num_lanes = args.ranks * args.prompts_per_rank
    slots = World(args.ranks // 2, args.ranks).slots(num_lanes)

    def new_plan() -> StreamPlan:
        return StreamPlan([SourceCounts("0" * 64, counts)], num_lanes, 0, 4)

    def places(plan: StreamPlan, epoch: int, part: float) -> object:
        start = int(plan.num_batches * part)
        return plan.places(epoch, range(start, min(start + _BATCHES, plan.num_batches)), slots)

    plan, new_epochs = new_plan(), count(1)
    places(plan, 0, 0)
    num_located = len(slots) * min(_BATCHES, plan.num_batches)
    rows: dict[str, Row] = {
        "open": _measured(new_plan),
        "open, first": _measured(lambda: places(new_plan(), 0, 0)),
        "open, resume": _measured(lambda: places(new_plan(), 0, 0.9)),
        "next epoch": _measured(lambda: places(plan, next(new_epochs), 0)),
        "locate": _measured(lambda: places(plan, 0, 0.5), num_located),
    }
    if not args.no_manifest:
        data = _manifest(counts.tolist())
        rows["manifest"] = _measured(lambda: Manifest.from_json(data))
    total = int(counts.sum())
    title = f"{args.num_shards:,} shards, {total:,} samples, {args.ranks:,} ranks, one rank's part"
    show(args, title, {"plan": rows})


def _manifest(counts: list[int]) -> bytes:
    shards = [
        ShardInfo(f"shard-{i:09d}.tar", n, 88_000 * n, hashlib.sha256(b"%d" % i).hexdigest(), i)
        for i, n in enumerate(counts)
    ]
    return Manifest(MANIFEST_VERSION, shards).to_json()


def _measured(action: Callable[[], Any], num_located: int = 0) -> Row:
    start = time.perf_counter()
    action()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    kept = action()
    left, peak = tracemalloc.get_traced_memory()
    del kept
    tracemalloc.stop()
    return {
        "seconds": float(f"{seconds:.4g}"),
        "peak_mb": round(peak / 1e6, 2),
        "kept_mb": round(left / 1e6, 2),
        "us_per_sample": float(f"{seconds / num_located * 1e6:.4g}") if num_located else None,
    }
