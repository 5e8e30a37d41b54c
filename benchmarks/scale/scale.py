"""Simulates a run on thousands of ranks: stalls, requests and bytes, by the real plan and retries.

No data are read. Which samples a rank reads is what the stream's plan says, what is fetched ahead
follows the loader's rules, and failed requests wait as the retry rules have it; how long a request
takes is drawn.
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.command_line import Commands, new_command
from benchmarks.loaders.figures import Row, show
from benchmarks.scale.scale_run import Cluster, Outcome, Reads, plan_reads, simulate, traffic
from benchmarks.scale.scale_store import StoreModel, StoreTimes
from grpo_stream.report.charts import Series, Svg, line_chart
from grpo_stream.storage.retry_policy import RetryRules
from grpo_stream.stream.config import StreamConfig

_EPILOG = """\
start      seconds until every rank has its first batch; stall_%: share of the time after it
stalled    generation batches that waited; longest: seconds
req/s      requests per second, mean over the run; peak: of its busiest second
later      of the busiest second after 64 batches, when ranks have filled up for the first time
retries    tries after the first one; lost: reads that were given up, each of which ends the run

What is assumed:
* All ranks take equally long for a step, and none begins one before all have their samples.
* Requests of a rank take its connections in order; a node's link and the store are shared as if
  all that was asked for together came together, so bandwidth is never better than told here.
* The last batch is the run's last: requests fade out towards it, as nothing comes after it.
* The store takes any number of requests per second; what it would refuse, compare with peak.
* Latency is log-normal with a Pareto tail; failures come independently, outages hit all tries.
* Decoding and handing over take no time; neighbours that come by one request count as two.
* Samples of 1,000 ranks come from the plan and serve for the others, too: lanes are alike; so does
  when each of them fetches. Every rank's requests are drawn by themselves. Outages are drawn with
  1,000 ranks, and begin with the 11th step where nothing else is said.
* An epoch's bytes are those of one node, walked from its first batch to its last; what a cache
  has no room for counts as fetched again, where the real one would read by range.
"""
_NOTHING_AHEAD = 1
_SMALL = 16 * 2**20
_FIRST_FILL = 64  # calls, at most


def add_command(commands: Commands) -> None:
    """Adds ``scale`` to the command line."""
    command = new_command(commands, "scale", "thousands of ranks, simulated", __doc__, _EPILOG)
    add, cluster, store = command.add_argument, Cluster(), StoreModel()
    add("--ranks", type=int, default=cluster.num_ranks, help="(%(default)s)")
    add("--ranks-per-node", type=int, default=cluster.ranks_per_node, help="(%(default)s)")
    add("--num-shards", type=int, default=cluster.num_shards, help="(%(default)s)")
    add("--samples-per-shard", type=int, default=cluster.samples_per_shard, help="(%(default)s)")
    add("--sample-bytes", type=int, default=cluster.sample_bytes, help="mean (%(default)s)")
    add("--prompts-per-rank", type=int, default=cluster.prompts_per_rank, help="(%(default)s)")
    add("--step-seconds", type=float, default=cluster.step_seconds, help="(%(default)s)")
    add("--batches", type=int, default=600, help="generation batches (%(default)s)")
    add("--latency-ms", type=float, default=store.latency * 1e3, help="median (%(default)s)")
    add("--node-gbit", type=float, default=store.node_rate * 8e-9, help="per s (%(default)s)")
    add("--store-gbit", type=float, default=store.store_rate * 8e-9, help="per s (%(default)s)")
    add("--svg", type=Path, help="draw the results")
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints tables, and draws them where asked to."""
    with _quiet_retries():
        _run(args)


@contextmanager
def _quiet_retries() -> Iterator[None]:
    """Simulated trouble is no news."""
    logger = logging.getLogger("grpo_stream.storage.retry_policy")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _run(args: argparse.Namespace) -> None:
    cluster = Cluster(
        num_ranks=args.ranks,
        ranks_per_node=args.ranks_per_node,
        prompts_per_rank=args.prompts_per_rank,
        step_seconds=args.step_seconds,
        num_shards=args.num_shards,
        samples_per_shard=args.samples_per_shard,
        sample_bytes=args.sample_bytes,
    )
    model = StoreModel(
        latency=args.latency_ms / 1e3,
        node_rate=args.node_gbit * 1e9 / 8,
        store_rate=args.store_gbit * 1e9 / 8,
    )
    bench = _Bench(cluster, model, args.batches)
    rows = {name: bench.row(outcome) for name, outcome in bench.scenarios().items()}
    rooms = bench.rooms()
    walked = traffic(cluster, bench.plan, rooms)
    read = {"ranges and indexes": walked.by_range}
    read |= {f"cache of {room:,} shards a node": walked.cached[room] for room in rooms}
    num_bytes = cluster.num_shards * cluster.samples_per_shard * cluster.sample_bytes
    tables: dict[str, dict[str, Row]] = {
        "generation batches": rows,
        "bytes of an epoch": {
            name: {
                "read / needed": round(ratio, 4),
                "twice_tb": round((ratio - 1) * num_bytes / 1e12, 2),
            }
            for name, ratio in read.items()
        },
    }
    title = (
        f"{cluster.num_ranks:,} ranks, {cluster.num_shards:,} shards, "
        f"{bench.plan.num_batches:,} generation batches an epoch, {args.batches} simulated"
    )
    show(args, title, tables)
    if not args.json:
        print(f"\n{_EPILOG}", end="")
    if args.svg is not None:
        args.svg.write_text(bench.draw(), encoding="utf-8")


class _Bench:
    """The scenarios of one cluster and store."""

    def __init__(self, cluster: Cluster, model: StoreModel, num_batches: int) -> None:
        self.cluster, self.model = cluster, model
        self.config = StreamConfig(num_lanes=cluster.num_ranks * cluster.prompts_per_rank)
        self.plan = cluster.plan(self.config.block_shards)
        self.reads = plan_reads(cluster, self.plan, min(num_batches, self.plan.num_batches))
        # A part of the ranks, where what happens to a rank does not depend on how many there are.
        self.part = replace(cluster, num_ranks=min(1_000, cluster.num_ranks))
        self.usual = self.simulate(cluster)

    def simulate(
        self,
        cluster: Cluster,
        *,
        ahead: int | None = None,
        threads: int | None = None,
        outage_seconds: float = 0.0,
        outage_step: int = 10,
        num_batches: int | None = None,
    ) -> Outcome:
        """One run; an outage begins in the middle of a step."""
        config = replace(
            self.config,
            fetch_ahead_bytes=ahead or self.config.fetch_ahead_bytes,
            num_fetch_threads=threads or self.config.num_fetch_threads,
        )
        begin = self.cluster.step_seconds * (outage_step + 0.5)
        outage = (begin, begin + outage_seconds)
        times = StoreTimes(replace(self.model, outage=outage), RetryRules(), 1)
        return simulate(cluster, self._reads_of(cluster, num_batches), config, times)

    def scenarios(self) -> dict[str, Outcome]:
        """By name, as in the table."""
        slow = replace(self.cluster, slow_node=100.0)
        fast = replace(self.cluster, step_seconds=1.0)
        return {
            "as it comes": self.usual,
            "2 connections a rank": self.simulate(self.cluster, threads=2),
            "16 MiB ahead": self.simulate(self.cluster, ahead=_SMALL),
            "2 batches ahead": self.simulate(self.cluster, ahead=_NOTHING_AHEAD),
            "a node reads 100x slower": self.simulate(slow, ahead=_NOTHING_AHEAD),
            "steps of 1 s": self.simulate(fast),
            "the same, 2 batches ahead": self.simulate(fast, ahead=_NOTHING_AHEAD),
            "store down for 60 s": self.simulate(self.part, outage_seconds=60.0),
            "the same, from the 2nd step": self.simulate(
                self.part, outage_seconds=60.0, outage_step=1
            ),
            "the same, 2 batches ahead ": self.simulate(
                self.part, ahead=_NOTHING_AHEAD, outage_seconds=60.0
            ),
        }

    def row(self, outcome: Outcome) -> Row:
        """Figures of one run."""
        later = outcome.stalls[1:]
        return {
            "start": round(float(outcome.stalls[0]), 2),
            "stall_%": round(100 * outcome.stall_share, 2),
            "stalled": int((later > 0.01).sum()),
            "longest": round(float(later.max(initial=0.0)), 1),
            "req/s": round(len(outcome.request_times) / outcome.wall_seconds),
            "peak": outcome.peak(),
            "later": outcome.peak(_FIRST_FILL),
            "retries": outcome.num_retries,
            "lost": outcome.num_given_up,
        }

    def rooms(self) -> list[int]:
        """Sizes of a node's cache in shards, upwards of what its lanes are in at a time."""
        at_a_time = self.cluster.ranks_per_node * self.cluster.prompts_per_rank
        at_a_time *= self.config.block_shards
        return [at_a_time * eighths // 8 for eighths in (9, 10, 12, 16)]

    def draw(self) -> Svg:
        """Four charts in one picture."""
        per_second = self.usual.per_second
        outages, steps = (0, 10, 20, 30, 45, 60, 80, 100), (0.5, 1, 2, 3, 5, 10)
        sizes = [self.cluster.num_ranks // part for part in (8, 4, 2, 1)]
        of_sizes = [self.simulate(replace(self.cluster, num_ranks=size)) for size in sizes]
        by_ahead = {"256 MiB ahead": None, "2 batches ahead": _NOTHING_AHEAD}
        return _in_grid(
            [
                line_chart(
                    "Requests of all ranks",
                    [Series("requests", range(len(per_second)), [*(per_second / 1e3)])],
                    x_label="seconds since the start",
                    y_label="thousand requests per second",
                ),
                line_chart(
                    "Busiest second",
                    [
                        Series(name, sizes, [one.peak(first_batch) / 1e3 for one in of_sizes])
                        for name, first_batch in {
                            "of all": 0,
                            "after 64 batches": _FIRST_FILL,
                        }.items()
                    ],
                    x_label="ranks",
                    y_label="thousand requests per second",
                ),
                line_chart(
                    "The store is down",
                    [
                        Series(name, outages, [self._waits(ahead, s) for s in outages])
                        for name, ahead in by_ahead.items()
                    ],
                    x_label="seconds of the outage",
                    y_label="seconds that training waits",
                ),
                line_chart(
                    "Short steps",
                    [
                        Series(name, steps, [self._share(ahead, s) for s in steps])
                        for name, ahead in by_ahead.items()
                    ],
                    x_label="seconds of a generation batch",
                    y_label="% of the time that all wait",
                ),
            ]
        )

    def _waits(self, ahead: int | None, seconds: float) -> float:
        outcome = self.simulate(self.part, ahead=ahead, outage_seconds=seconds, num_batches=80)
        return float(outcome.stalls[1:].sum())

    def _share(self, ahead: int | None, step_seconds: float) -> float:
        cluster = replace(self.cluster, step_seconds=step_seconds)
        return 100 * self.simulate(cluster, ahead=ahead, num_batches=80).stall_share

    def _reads_of(self, cluster: Cluster, num_batches: int | None) -> Reads:
        num_ranks = min(cluster.num_ranks, self.reads.num_bytes.shape[1])
        part = (slice(num_batches), slice(num_ranks))
        return Reads(self.reads.num_bytes[part], self.reads.is_first[part])


def _in_grid(charts: Sequence[Svg]) -> Svg:
    width, height = 540, 300
    placed = [
        chart.replace(
            "<svg ", f"<svg x='{n % 2 * width}' y='{n // 2 * height}' width='520' ", 1
        ).replace("role='img'", "role='img' height='280'", 1)
        for n, chart in enumerate(charts)
    ]
    size = f"viewBox='0 0 {2 * width} {2 * height}'"
    paper = "<rect width='100%' height='100%' fill='#ffffff'/>"
    return Svg(f"<svg {size} xmlns='http://www.w3.org/2000/svg'>{paper}{''.join(placed)}</svg>\n")
