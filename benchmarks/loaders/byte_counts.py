"""Counts the bytes that an epoch costs: what all ranks read against what they deliver.

The ranks are simulated in one process and take turns, batch by batch; a bucket on loopback counts
what it sends. Nothing is decoded, so between two rounds there is a pause in a step's place.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tqdm import tqdm

from benchmarks.command_line import Commands, new_command
from benchmarks.loaders.figures import Row, show
from benchmarks.loaders.loader import add_data, fetch_ahead_bytes, prepared
from benchmarks.peers.ours import keep_sample
from benchmarks.servers.server_process import serve
from grpo_stream.shards.sample import encode_meta
from grpo_stream.stream.config import CacheSettings, StreamConfig
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World

_EPILOG = """\
needed    megabytes of the images and JSON that were delivered; read: that the bucket sent, manifest
          and indexes included
ratio     read / needed
per_s     requests per second and rank at the pace of --step-ms
"""


def add_command(commands: Commands) -> None:
    """Adds ``bytes`` to the command line."""
    command = new_command(commands, "bytes", "bytes read for each byte delivered", __doc__, _EPILOG)
    add_data(command)
    add = command.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], help="world sizes (1 2 4)")
    add("--delay-ms", type=float, default=30, help="of every answer of the bucket (%(default)s)")
    add("--step-ms", type=float, default=30, help="pause after each batch (%(default)s)")
    add("--cache-shards", type=int, default=8, help="that the cache has room for (%(default)s)")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints bytes and ratios."""
    rows: dict[str, Row] = {}
    with prepared(args, []) as job, serve(args.delay_ms, job.shards) as server:
        kinds = [(kind, ranks) for ranks in args.ranks for kind in ("ranges", "cache")]
        for kind, num_ranks in tqdm(kinds, disable=args.json):
            with (
                patch.dict(os.environ, server.environment),
                tempfile.TemporaryDirectory() as folder,
            ):
                cache = None
                if kind == "cache":
                    cache = _cache_settings(Path(folder), job.shards, args.cache_shards)
                before, start = server.usage(), time.perf_counter()
                needed = _epoch(args, server.url, num_ranks, cache)
                seconds, used = time.perf_counter() - start, server.usage().since(before)
            rows[f"{num_ranks} ranks, {kind}"] = {
                "needed": round(needed / 1e6, 2),
                "read": round(used.num_sent_bytes / 1e6, 2),
                "ratio": round(used.num_sent_bytes / needed, 4),
                "requests": used.num_requests,
                "per_s": round(used.num_requests / seconds / num_ranks, 2),
            }
    show(args, "an epoch's bytes, in megabytes", {"bytes": rows})


def _cache_settings(folder: Path, shards: str, num_shards: int) -> CacheSettings:
    largest = max(shard.num_bytes for shard in ShardSource(shards).manifest.shards)
    return CacheSettings(str(folder), num_shards * largest)


def _epoch(args: argparse.Namespace, url: str, num_ranks: int, cache: CacheSettings | None) -> int:
    """Reads an epoch on all ranks; returns the bytes of images and JSON that were delivered."""
    config = StreamConfig(
        num_lanes=args.batch_size * num_ranks,
        num_reader_threads=1,
        fetch_ahead_bytes=fetch_ahead_bytes(args) or StreamConfig.fetch_ahead_bytes,
    )
    loaders = [
        PromptLoader(
            PromptStream(
                ShardSource(url, cache=cache),
                config,
                World(rank, num_ranks),
                open_sample=keep_sample,
            ),
            _payload_bytes,
        )
        for rank in range(num_ranks)
    ]
    num_bytes = 0
    for batches in zip(*loaders, strict=True):
        num_bytes += sum(batches)
        time.sleep(args.step_ms / 1000)
    for loader in loaders:
        loader.close()
    return num_bytes


def _payload_bytes(samples: list[Any]) -> int:
    return sum(len(one.image) + len(encode_meta(one.meta)) for one in samples)
