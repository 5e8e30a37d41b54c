"""The ranks of a large run in a simulation: who fetches what when, and how long steps wait."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.scale_store import Floats, StoreModel, StoreTimes
from grpo_stream.order.stream_plan import SourceCounts, StreamPlan
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.pipeline.look_ahead import LookAhead
from grpo_stream.stream.world import World

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Cluster:
    """A run and its data set."""

    num_ranks: int = 10_000
    ranks_per_node: int = 8
    prompts_per_rank: int = 4
    """Of a generation batch."""
    step_seconds: float = 10.0
    """A generation batch takes so long when it waits for nothing: rollout and its updates."""
    num_shards: int = 10**6
    samples_per_shard: int = 700
    """Mean; shards have half to one and a half times as many."""
    sample_bytes: int = 250_000
    """Mean; log-normal with sigma 0.6 within a shard."""
    index_bytes: int = 60_000
    """Of a shard's index, read at a rank's first sample of the shard."""
    slow_node: float = 1.0
    """How many times slower the last node reads than the others."""
    num_sampled: int = 1_000
    """Ranks whose samples the plan is asked for; the others have theirs."""
    seed: int = 0

    def plan(self, block_shards: int) -> StreamPlan:
        """The real plan over made-up counts of samples."""
        rng = np.random.default_rng(self.seed)
        mean = self.samples_per_shard
        counts = rng.integers(mean // 2, mean + mean // 2 + 1, self.num_shards)
        source = SourceCounts("0" * 64, counts)
        lanes = self.num_ranks * self.prompts_per_rank
        return StreamPlan([source], lanes, self.seed, block_shards)


@dataclass(frozen=True)
class Reads:
    """What the sampled ranks read in each generation batch."""

    num_bytes: Floats
    """Shape (batches, ranks, prompts)."""
    is_first: NDArray[np.bool_]
    """Whether it is the rank's first sample of its shard: the index comes before it."""


@dataclass
class Outcome:
    """What a simulated run came to; times in seconds."""

    stalls: Floats
    """Wait before each generation batch; of the first it is the start of the run."""
    ends: Floats
    """When no generation batch was over, the first one, ..., all; shape (batches + 1,)."""
    request_times: Floats
    """When every try of a request began."""
    num_bytes: float
    num_retries: int
    num_given_up: int
    per_second: Floats = field(init=False)
    """Requests of each second."""

    def __post_init__(self) -> None:
        bins = np.bincount(self.request_times.astype(np.int64))
        self.per_second = bins.astype(np.float64)

    def peak(self, num_over: int = 0) -> int:
        """Requests of the busiest second once so many generation batches are over."""
        begin = int(self.ends[min(num_over, len(self.stalls))])
        return int(self.per_second[begin:].max(initial=0))

    @property
    def wall_seconds(self) -> float:
        """What the run took."""
        return float(self.ends[-1])

    @property
    def stall_share(self) -> float:
        """Waiting, the start of the run apart, as a part of the wall time."""
        return float(self.stalls[1:].sum() / self.wall_seconds)


def plan_reads(cluster: Cluster, plan: StreamPlan, num_batches: int) -> Reads:
    """Asks the plan for the first ranks' samples; their sizes are drawn."""
    num_ranks = min(cluster.num_sampled, cluster.num_ranks)
    slots = range(num_ranks * cluster.prompts_per_rank)
    _, shards, _ = plan.places(0, range(num_batches), slots)
    by_rank = shards.reshape(num_batches, num_ranks, cluster.prompts_per_rank)
    is_first = np.zeros(by_rank.shape, dtype=bool)
    for rank in range(num_ranks):
        own = np.zeros(num_batches * cluster.prompts_per_rank, dtype=bool)
        own[np.unique(by_rank[:, rank].ravel(), return_index=True)[1]] = True
        is_first[:, rank] = own.reshape(num_batches, -1)
    rng = np.random.default_rng(cluster.seed + 1)
    sigma = 0.6
    sizes = rng.lognormal(-(sigma**2) / 2, sigma, by_rank.shape) * cluster.sample_bytes
    return Reads(sizes, is_first)


def release_calls(num_batches: int, batch_bytes: float, rule: LookAhead) -> Indices:
    """At which call for a batch each batch of a rank begins to be fetched, shape (batches,).

    The first call fetches what is near, and looks further when it has its own batch; of both,
    call 0 is told.
    """
    calls = np.zeros(num_batches, dtype=np.int64)
    released = min(rule.config.prefetch_batches + 1, num_batches)
    for call in range(num_batches):
        held = released - max(call, 1)
        limit = rule.limit(call, held, held * batch_bytes)
        while released < num_batches and rule.has_room(limit, held, held * batch_bytes):
            calls[released] = call
            released += 1
            held += 1
    return calls


def simulate(cluster: Cluster, reads: Reads, config: StreamConfig, times: StoreTimes) -> Outcome:
    """Runs the generation batches of ``reads`` on all ranks.

    Each rank has ``num_fetch_threads`` connections, and takes its reads in order. A generation
    batch begins when the one before it has ended and every rank has its samples. Connections
    share a node's link and the store as if all that were asked for at one call ran together.
    """
    num_batches, num_sampled, num_prompts = reads.num_bytes.shape
    repeat = np.arange(cluster.num_ranks) % num_sampled
    batch_bytes = num_prompts * float(cluster.sample_bytes)
    rules = [LookAhead(config, World(rank, cluster.num_ranks)) for rank in range(num_sampled)]
    by_rank = [release_calls(num_batches, batch_bytes, rule) for rule in rules]
    calls = np.stack(by_rank, axis=1)[:, repeat]
    asked = [np.bincount(one, minlength=num_batches) * num_prompts for one in by_rank]
    active = np.minimum(np.stack(asked, axis=1)[:, repeat], config.num_fetch_threads)
    rates = _rates(cluster, times.model, active)
    slow = np.ones(cluster.num_ranks)
    slow[-cluster.ranks_per_node :] = cluster.slow_node
    free = np.zeros((cluster.num_ranks, config.num_fetch_threads))
    every, ends, began = np.arange(cluster.num_ranks), [0.0], []
    stalls: list[float] = []
    for batch in range(num_batches):
        release = np.array(ends)[calls[batch]]
        if batch > config.prefetch_batches:
            release[calls[batch] == 0] = stalls[0]  # behind the first batch
        rate = rates[calls[batch], every]
        ready = 0.0
        for prompt in range(num_prompts):
            thread = free.argmin(axis=1)
            starts = np.maximum(free[every, thread], release)
            waits = np.zeros(cluster.num_ranks)  # for the index
            first = np.flatnonzero(reads.is_first[batch, repeat, prompt])
            if first.size:
                index = np.full(first.size, float(cluster.index_bytes))
                waits[first] = times.draw(starts[first], index, rate[first], slow[first])
                began.append(starts[first])
            began.append(starts + waits)
            size = reads.num_bytes[batch, repeat, prompt]
            seconds = waits + times.draw(starts + waits, size, rate, slow)
            free[every, thread] = starts + seconds
            ready = max(ready, float((starts + seconds).max()))
        stalls.append(max(0.0, ready - ends[-1]))
        ends.append(ends[-1] + stalls[-1] + cluster.step_seconds)
    scale = cluster.num_ranks / num_sampled
    num_bytes = scale * (reads.num_bytes.sum() + reads.is_first.sum() * cluster.index_bytes)
    return Outcome(
        np.array(stalls),
        np.array(ends),
        np.concatenate([*began, np.array(times.retry_times)]),
        float(num_bytes),
        len(times.retry_times),
        times.num_given_up,
    )


def _rates(cluster: Cluster, model: StoreModel, active: Indices) -> Floats:
    """Bytes per second of a connection by call and rank, from how many of them are in use."""
    num_ranks, per_node = cluster.num_ranks, cluster.ranks_per_node
    of_nodes = np.add.reduceat(active, np.arange(0, num_ranks, per_node), axis=1)
    of_node = of_nodes[:, np.arange(num_ranks) // per_node].clip(1)
    of_all = active.sum(axis=1, keepdims=True).clip(1)
    rates: Floats = np.minimum(model.node_rate / of_node, model.store_rate / of_all)
    return rates.clip(max=model.connection_rate)


@dataclass(frozen=True)
class Traffic:
    """What a node reads in an epoch, in samples' worth of bytes; by the real plan."""

    by_range: float
    """Bytes read by ranges, indexes included, over the bytes of its samples."""
    cached: dict[int, float]
    """Room of the cache in shards -> bytes of whole shards fetched, over the same."""
    shards_of_node: int
    """Shards that it touches in the epoch."""


def traffic(cluster: Cluster, plan: StreamPlan, rooms: list[int], node: int = 1) -> Traffic:
    """Walks a whole epoch of one node's ranks.

    A cache keeps the shards that were used last. The real one also keeps what is announced, which
    matters where its room is less than what the node's lanes are in at a time.
    """
    world_size, per_node = cluster.num_ranks, cluster.ranks_per_node
    num_lanes = world_size * cluster.prompts_per_rank
    first = World(node * per_node, world_size).slots(num_lanes).start
    slots = range(first, first + per_node * cluster.prompts_per_rank)
    _, shards, _ = plan.places(0, range(plan.num_batches), slots)
    counts = plan.sources[0].shard_counts
    ranks = shards.reshape(plan.num_batches, per_node, cluster.prompts_per_rank)
    num_indexes = sum(np.unique(ranks[:, rank]).size for rank in range(per_node))
    index_bytes = num_indexes * cluster.index_bytes
    by_range = 1 + index_bytes / (shards.size * cluster.sample_bytes)
    walk = shards.ravel().tolist()
    fetched = {room: sum(counts[shard] for shard in _misses(walk, room)) for room in rooms}
    cached = {room: float(samples) / shards.size for room, samples in fetched.items()}
    return Traffic(by_range, cached, int(np.unique(shards).size))


def _misses(walk: list[int], room: int) -> list[int]:
    kept: dict[int, None] = {}
    missed = []
    for shard in walk:
        if shard in kept:
            del kept[shard]
        else:
            missed.append(shard)
            if len(kept) >= room:
                del kept[next(iter(kept))]
        kept[shard] = None  # now the last one used
    return missed
