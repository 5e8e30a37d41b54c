"""Times the stream's loader beside a bare read+decode loop and beside other loaders.

Every contestant runs in a process of its own. They take turns (``turns.py``): in every round each
of them delivers a few hundred samples while the others stall, so that what else the machine
does falls on all of them. The ratios, medians over the rounds, are the message. The clock runs
while all workers are busy, so start-up counts for nothing (see ``first_batch``).
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.command_line import Commands, new_command
from benchmarks.loaders.bare_loop import BARE
from benchmarks.loaders.bench_data import make_shards
from benchmarks.loaders.figures import (
    Row,
    Table,
    mean,
    median,
    quartiles,
    ratio,
    ratio_in_all,
    show,
)
from benchmarks.loaders.job import Job, Measured
from benchmarks.loaders.turns import Contestant
from benchmarks.peers.peers import OURS, PEERS
from benchmarks.servers.server_process import Server, Usage, serve
from grpo_stream.errors import ConfigError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import open_store

_EPILOG = """\
bare         N processes that each read a part of the tars (ustar by hand), parse the JSON, decode
             and throw away: what the machine can do at most
threads      this project's loader, N threads that decode; batches in the stream's mixed order
processes    the same with N worker processes
others       with N worker processes, unshuffled; see benchmarks/peers/peers.py

per second       samples delivered
per cpu second   samples for each second of CPU that all processes of a loader took
share of bare    per second, relative to bare; per cpu: per cpu second, relative to bare
threads / it     the same of threads, relative to this loader's
quartiles        of the rounds' ratios: half of them lie between
in all           ratio of all turns together: what comes in bursts, as fetching ahead does, falls
                 on few turns, and a median does not see it
server           what it did in a turn, mean

A loader is opened anew before its turns would reach past nine tenths of an epoch: an epoch's end
costs some of them much.
"""

_TURNS_OF_A_WINDOW = 8


@dataclass
class Rounds:
    """What each contestant measured, round by round."""

    measured: dict[str, list[Measured]] = field(default_factory=dict)
    served: dict[str, list[Usage]] = field(default_factory=dict)

    def per_second(self, name: str) -> list[float]:
        """Samples per second."""
        return [one.per_second for one in self.measured[name]]

    def per_cpu_second(self, name: str) -> list[float]:
        """Samples per second of CPU."""
        return [one.per_cpu_second for one in self.measured[name]]


def add_command(commands: Commands) -> None:
    """Adds ``loader`` to the command line."""
    command = new_command(
        commands, "loader", "the loader beside a bare loop and other loaders", __doc__, _EPILOG
    )
    add_data(command)
    add = command.add_argument
    add("--timed-samples", type=int, help="of each turn; an eleventh of an epoch if not given")
    add("--raw", action="store_true", help="deliver the images' bytes, undecoded")
    add("--processes", action="store_true", help="also with worker processes of this project")
    add("--peers", action="store_true", help="also the other loaders that are installed")
    add("--only", nargs="+", default=[], help="only contestants whose name starts so")
    add("--store", choices=("local", "s3"), default="local", help="s3: from a bucket on loopback")
    add("--cache", action="store_true", help="with s3: also through an empty shard cache")
    add("--delay-ms", type=float, default=30, help="of every answer of the bucket (%(default)s)")
    command.set_defaults(run=run, rounds=24)


def add_data(command: argparse.ArgumentParser) -> None:
    """Adds what all commands that read shards have in common."""
    add = command.add_argument
    add("--shards", help="folder of a data set; screenshots as JPEGs if not given")
    add("--num-samples", type=int, default=3000, help="of the screenshots' set (%(default)s)")
    add("--samples-per-shard", type=int, default=250, help="(%(default)s)")
    add("--image-size", type=int, nargs=2, default=(1280, 720), metavar=("W", "H"))
    add("--batch-size", type=int, default=8, help="samples (%(default)s)")
    add("--workers", type=int, default=2, help="N: threads or processes (%(default)s)")
    add("--max-pixels", type=int, help="resize to this area at most; as stored if not given")
    add("--fetch-ahead-mb", type=float, help="of this project's loader; its default if not given")
    add("--rounds", type=int, default=3, help="(%(default)s)")
    add("--folder", type=Path, help="keeps shards and copies for next time; else a temporary one")
    add("--json", action="store_true", help="print the figures as JSON")


@contextmanager
def prepared(args: argparse.Namespace, contestants: list[str]) -> Iterator[Job]:
    """Shards and copies; the job that all contestants get."""
    with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        size = tuple(args.image_size)
        shards = args.shards or str(
            make_shards(Path(folder), args.num_samples, args.samples_per_shard, size)
        )
        manifest = Manifest.load(open_store(shards))
        copies = Path(folder) / f"copies_{manifest.digest[:12]}"
        for name in tqdm(contestants, "copies", disable=args.json, leave=False):
            if name in PEERS:
                PEERS[name].convert(shards, copies / name)
        num_samples = sum(shard.num_samples for shard in manifest.shards)
        yield Job(
            contestant="",
            shards=shards,
            copies=str(copies),
            num_workers=args.workers,
            max_pixels=args.max_pixels,
            fetch_ahead_bytes=fetch_ahead_bytes(args),
            batch_size=args.batch_size,
            # A window inside of one epoch.
            num_warm_up=num_samples // 10,
            num_samples=num_samples * 7 // 10,
        )


def fetch_ahead_bytes(args: argparse.Namespace) -> int | None:
    """What ``--fetch-ahead-mb`` says."""
    return None if args.fetch_ahead_mb is None else max(1, int(args.fetch_ahead_mb * 1e6))


def installed_peers() -> list[str]:
    """Names of the other loaders that can be run; the others are named on standard error."""
    for name, peer in PEERS.items():
        if not peer.is_installed:
            message = f"{name}: not installed, left out; see benchmarks/peers/peers.py"
            print(message, file=sys.stderr)
    return [name for name, peer in PEERS.items() if peer.is_installed]


def run(args: argparse.Namespace) -> None:
    """Prints samples per second and ratios."""
    contestants = _contestants(args)
    with prepared(args, contestants) as job:
        window = job.num_samples
        num_samples = args.timed_samples or max(1, window // _TURNS_OF_A_WINDOW)
        num_turns = max(1, min(window // num_samples, args.rounds))
        own = replace(job, is_raw=args.raw, num_samples=num_samples, num_turns=num_turns)
        rounds = _run_rounds(args, own, contestants)
    kind = "raw" if args.raw else "decoded"
    show(
        args,
        f"{kind}, {args.store}, {args.workers} workers: medians of {args.rounds} rounds",
        _tables(args, contestants, rounds),
    )


def _contestants(args: argparse.Namespace) -> list[str]:
    names = [BARE, OURS[0]]
    if args.processes:
        names.append(OURS[1])
    if args.store == "s3":
        if args.peers:
            raise ConfigError("--peers", True, "is for --store local only")
        names += [f"{name} s3" for name in names if name in OURS]
        if args.cache:
            names.append(f"{OURS[0]} s3 cache")
    if args.peers:
        names += installed_peers()
    chosen = [name for name in names if not args.only or name.startswith(tuple(args.only))]
    if not chosen:
        raise ConfigError("--only", args.only, f"must name some of {names}")
    return chosen


def _run_rounds(args: argparse.Namespace, job: Job, contestants: list[str]) -> Rounds:
    rounds = Rounds({name: [] for name in contestants}, {})
    serving = serve(args.delay_ms, job.shards) if args.store == "s3" else nullcontext()
    progress = tqdm(total=args.rounds * len(contestants), disable=args.json, unit="turn")
    with serving as server, progress, _Field(job, server) as opened:
        for number in range(args.rounds):
            for name in contestants:
                progress.set_description(f"{name}: opening")
                opened.prepare(name, args.rounds - number)
            for name in contestants:
                progress.set_description(name)
                remote = server if _is_remote(name) else None
                before = remote.usage() if remote else None
                rounds.measured[name].append(opened.contestants[name].take_turn())
                if remote and before:
                    rounds.served.setdefault(name, []).append(remote.usage().since(before))
                progress.update()
    return rounds


class _Field(ExitStack):
    """The contestants' processes, and the caches that some of them fill."""

    def __init__(self, job: Job, server: Server | None) -> None:
        super().__init__()
        self.contestants: dict[str, Contestant] = {}
        self._job, self._server = job, server
        self._caches = self.enter_context(tempfile.TemporaryDirectory())

    def prepare(self, name: str, num_turns: int) -> None:
        """Opens a contestant that is not there, or has had all its turns."""
        known = self.contestants.get(name)
        if known is not None and known.turns_left:
            return
        if known is not None:
            known.close()
        job = replace(
            self._job,
            contestant=name.split(maxsplit=1)[0],
            num_turns=min(self._job.num_turns, num_turns),
        )
        environment = None
        if self._server is not None and _is_remote(name):
            cache = tempfile.mkdtemp(dir=self._caches) if "cache" in name else ""
            job = replace(job, shards=self._server.url, cache=cache)
            environment = self._server.environment
        self.contestants[name] = self.enter_context(Contestant(job, environment))


def _is_remote(name: str) -> bool:
    """Whether a contestant reads from the bucket."""
    return "s3" in name.split()


def _tables(args: argparse.Namespace, contestants: list[str], rounds: Rounds) -> dict[str, Table]:
    tables: dict[str, Table] = {
        "samples": {
            name: {
                "per_second": median(rounds.per_second(name)),
                "per_cpu_second": median(rounds.per_cpu_second(name)),
                "first_batch_s": median([one.first_batch_seconds for one in measured]),
            }
            for name, measured in rounds.measured.items()
        }
    }
    if BARE in contestants:
        tables["share of bare"] = {
            name: _shares(rounds, name, BARE) for name in contestants if name != BARE
        }
    peers = [name for name in contestants if name in PEERS]
    if peers and OURS[0] in contestants:
        tables["threads / it"] = {name: _shares(rounds, OURS[0], name) for name in peers}
    if rounds.served:
        tables["server"] = {
            name: {
                "requests": mean([one.num_requests for one in usages]),
                "megabytes": mean([one.num_sent_bytes / 1e6 for one in usages]),
                "server_cpu_s": mean([one.cpu_seconds for one in usages]),
                "first_batch_in_delays": median(
                    [
                        one.first_batch_seconds / (args.delay_ms / 1000)
                        for one in rounds.measured[name]
                    ]
                ),
            }
            for name, usages in rounds.served.items()
        }
    return tables


def _shares(rounds: Rounds, one: str, other: str) -> Row:
    seconds = rounds.per_second(one), rounds.per_second(other)
    cpu_seconds = rounds.per_cpu_second(one), rounds.per_cpu_second(other)
    return {
        "per_second": ratio(*seconds),
        "quartiles": quartiles(*seconds),
        "in_all": ratio_in_all(*seconds),
        "per_cpu": ratio(*cpu_seconds),
        "cpu_quartiles": quartiles(*cpu_seconds),
        "cpu_in_all": ratio_in_all(*cpu_seconds),
    }
