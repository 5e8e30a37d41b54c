"""Times the same build into a local folder and into a bucket whose every answer comes late.

The bucket is a stand-in for S3 in a process of its own on this machine. Folder and bucket take
turns in every round, so that what else the machine does falls on both. What an upload costs that
no overlap can hide is timed beside them: the last shard's three files, put one after another.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tqdm import tqdm

from benchmarks.build.build import add_records, copy_images
from benchmarks.command_line import Commands, new_command
from benchmarks.servers.server_process import Server, serve
from grpo_stream.records.stored_image import Check, PictureRules
from grpo_stream.shards.index import shard_files
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import open_store
from shard_builder.build.build import BuildSettings, build
from shard_builder.build.chunk_plan import ShardLimits

_EPILOG = """\
local        seconds of the build into a folder
bucket       seconds of the same build into the bucket
last shard   seconds that the upload of the last shard and of its two indexes takes alone
server cpu   seconds of CPU that the bucket's server took during the build
requests     that the build sent
ratio        bucket / (local + last shard)
apart        the same without the server: (bucket - server cpu / cores) / (local + last shard)
"""


@dataclass(frozen=True)
class Round:
    """One build both ways; times in seconds."""

    local: float
    bucket: float
    last_shard: float
    server_cpu: float
    requests: int
    megabytes: float

    @property
    def ratio(self) -> float:
        """How much longer the bucket takes than the folder and the last shard's upload."""
        return self.bucket / (self.local + self.last_shard)

    @property
    def ratio_apart(self) -> float:
        """The same without the server's CPU, as if all cores had shared it."""
        num_cores = len(os.sched_getaffinity(0))
        return (self.bucket - self.server_cpu / num_cores) / (self.local + self.last_shard)


def add_command(commands: Commands) -> None:
    """Adds ``upload`` to the command line."""
    command = new_command(
        commands,
        "upload",
        "the shard builder into a folder and into a slow bucket",
        __doc__,
        _EPILOG,
    )
    add_records(command, num_samples=3000)
    add = command.add_argument
    add("--check", nargs="+", choices=("header", "decode"), default=["header", "decode"])
    add("--workers", nargs="+", type=int, default=[1, 2], help="one build for each (1 2)")
    add("--latency-ms", type=float, default=30, help="of every answer (%(default)s)")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints seconds and ratios."""
    contestants = [(check, workers) for check in args.check for workers in args.workers]
    rounds: dict[str, list[Round]] = {f"{check}, {workers}": [] for check, workers in contestants}
    with (
        tempfile.TemporaryDirectory(dir=args.folder) as temp,
        serve(args.latency_ms) as server,
        patch.dict(os.environ, server.environment),
    ):
        copy_images(args, Path(temp))
        for number in tqdm(range(args.rounds), "rounds", disable=args.json):
            for check, workers in contestants:
                name = f"{check}, {workers}"
                timed = _round(
                    args, Path(temp), server, f"{number}-{check}-{workers}", check, workers
                )
                rounds[name].append(timed)
    figures: dict[str, Any] = {
        "builds": {name: _summary(timed) for name, timed in rounds.items()},
        "settings": {
            name: str(value) for name, value in vars(args).items() if name not in ("run", "json")
        },
    }
    if args.json:
        print(json.dumps(figures))
        return
    print(f"median of {args.rounds} rounds, {args.num_samples} samples")
    columns = list(next(iter(figures["builds"].values())))
    print(" " * 12 + "".join(f"{column.replace('_', ' '):>13}" for column in columns))
    for name, values in figures["builds"].items():
        print(f"{name:<12}" + "".join(f"{values[column]:>13}" for column in columns))


def _round(
    args: argparse.Namespace, folder: Path, server: Server, name: str, check: Check, workers: int
) -> Round:
    out, url = folder / "out", f"{server.url}/{name}"

    def run_build(target: str) -> None:
        build(
            BuildSettings(
                inputs=(str(folder / "records.json"),),
                images_root=str(folder),
                out=target,
                pictures=PictureRules(check=check),
                limits=ShardLimits(max_samples=args.samples_per_shard),
                num_workers=workers,
            )
        )

    local = _seconds(lambda: run_build(str(out)))
    before = server.usage()
    bucket = _seconds(lambda: run_build(url))
    used = server.usage().since(before)
    last = Manifest.load(open_store(str(out))).shards[-1].name
    store = open_store(url)

    def upload_last() -> None:
        for file in shard_files(last):
            store.put_file(file, out / file)

    last_shard = _seconds(upload_last)
    shutil.rmtree(out)
    return Round(
        local,
        bucket,
        last_shard,
        used.cpu_seconds,
        used.num_requests,
        used.num_received_bytes / 1e6,
    )


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _summary(rounds: list[Round]) -> dict[str, float]:
    rows = [{**asdict(one), "ratio": one.ratio, "apart": one.ratio_apart} for one in rounds]
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
