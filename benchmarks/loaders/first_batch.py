"""Times the way to the first batch: cold, and resumed after nine tenths of an epoch.

Each time is taken in a new process, from opening the data to the first batch; imports are done
before, and files are in the page cache. The state to resume from is each loader's own, saved once
by a process that read that far. From a bucket, what its late answers add is told in answers: the
difference to the folder's time of the same round, in units of the delay.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.command_line import Commands, new_command
from benchmarks.loaders.figures import Row, Table, median, ratio, show
from benchmarks.loaders.job import Job, Measured, run_apart
from benchmarks.loaders.loader import add_data, installed_peers, prepared
from benchmarks.peers.peers import OURS, PEERS
from benchmarks.servers.server_process import serve
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import open_store

_EPILOG = """\
cold         seconds to the first batch of an epoch
resumed      seconds to the first batch after a saved state
ratio        resumed / cold, median of the rounds
exact        whether the batch is the one that the saving process got next
state bytes  of the saved state, pickled
answers      (bucket - folder) / delay: how many answers were waited for one after another
"""


def add_command(commands: Commands) -> None:
    """Adds ``first_batch`` to the command line."""
    command = new_command(
        commands, "first_batch", "time to the first batch, cold and resumed", __doc__, _EPILOG
    )
    add_data(command)
    add = command.add_argument
    add("--peers", action="store_true", help="also the other loaders that can resume")
    add("--only", nargs="+", default=[], help="only contestants whose name starts so")
    add("--delay-ms", type=float, default=30, help="of every answer of the bucket (%(default)s)")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints seconds and ratios."""
    names = [OURS[0]]
    if args.peers:
        names += [name for name in installed_peers() if PEERS[name].can_resume]
    names = [name for name in names if not args.only or name.startswith(tuple(args.only))]
    with prepared(args, names) as job:
        tables = _measure(args, replace(job, num_warm_up=0, num_samples=1), names)
    show(args, f"first batch of {args.batch_size}: medians of {args.rounds} rounds", tables)


def _measure(args: argparse.Namespace, job: Job, names: list[str]) -> dict[str, Table]:
    num_samples = sum(shard.num_samples for shard in Manifest.load(open_store(job.shards)).shards)
    num_before = num_samples // job.batch_size * 9 // 10
    cold: dict[str, list[Measured]] = {}
    resumed: dict[str, list[Measured]] = {}
    next_keys: dict[str, tuple[str, ...]] = {}
    states = {name: Path(job.copies) / f"{name}.state" for name in names}
    for name, path in tqdm(states.items(), "states", disable=args.json):
        path.parent.mkdir(parents=True, exist_ok=True)
        own = replace(job, contestant=name, num_batches_before=num_before, state=str(path))
        next_keys[name] = run_apart(own).keys
    contestants = [*names, *(f"{name} s3" for name in names if name in OURS)]
    progress = tqdm(total=args.rounds * len(contestants), disable=args.json, unit="run")
    with serve(args.delay_ms, job.shards) as server, progress:
        for _ in range(args.rounds):
            for name in contestants:
                own = replace(job, contestant=name.removesuffix(" s3"))
                environment: dict[str, str] | None = None
                if own.contestant != name:
                    own = replace(own, shards=server.url)
                    environment = server.environment
                cold.setdefault(name, []).append(run_apart(own, environment))
                late = replace(own, state=str(states[own.contestant]))
                resumed.setdefault(name, []).append(run_apart(late, environment))
                progress.update()
    rows: dict[str, Row] = {}
    for name in contestants:
        own_name = name.removesuffix(" s3")
        is_exact = all(one.keys == next_keys[own_name] for one in resumed[name])
        rows[name] = {
            "cold_s": median(_seconds(cold[name])),
            "resumed_s": median(_seconds(resumed[name])),
            "ratio": ratio(_seconds(resumed[name]), _seconds(cold[name])),
            "exact": "yes" if is_exact else "no",
            "state_bytes": states[own_name].stat().st_size,
            "cold_answers": _answers(args, cold, name),
            "resumed_answers": _answers(args, resumed, name),
        }
    return {"seconds": rows}


def _seconds(measured: list[Measured]) -> list[float]:
    return [one.first_batch_seconds for one in measured]


def _answers(
    args: argparse.Namespace, measured: dict[str, list[Measured]], name: str
) -> float | None:
    local = name.removesuffix(" s3")
    if local == name or not args.delay_ms:
        return None
    pairs = zip(_seconds(measured[name]), _seconds(measured[local]), strict=True)
    return median([(far - near) / (args.delay_ms / 1000) for far, near in pairs])
