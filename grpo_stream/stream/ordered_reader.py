"""Every sample of a source once, in its own order, read ahead: for evaluation."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from grpo_stream.images import DEFAULT_LIMITS, ImageLimits, ResizeRule
from grpo_stream.order.epoch_plan import Indices
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.pipeline.fetcher import Fetcher, FetchRequest
from grpo_stream.stream.pipeline.pending_samples import PendingSamples
from grpo_stream.stream.pipeline.priority_pool import PriorityPool
from grpo_stream.stream.prompt_stream import Place, is_damage
from grpo_stream.stream.sources import Source
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.stream.world import World

_NUM_AHEAD_REMOTE = 64  # samples on their way while others are answered
_NUM_ANNOUNCED_BATCHES = 64
_NUM_DECODED_BATCHES = 2  # the one that is asked for and the next


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used."""

    where: str
    error: Exception


@dataclass(frozen=True)
class OrderedBatch:
    """Neighbouring samples of a source."""

    first: int
    """Ordinal of the first of them: its place in the whole source, from 0."""
    outcomes: list[StreamSample | BadSample]
    stored: list[Sample | None]
    """Of each outcome the sample at rest, its image not resized; None of bad samples."""


class _Opened(NamedTuple):
    outcome: StreamSample | BadSample
    stored: Sample | None


class OrderedReader:
    """This rank's share of the batches of a source.

    Batches are cut from the whole source, the last one may be shorter, and dealt out in turn: rank
    r of W reads batches r, r + W, r + 2W, ... So all ranks together read every sample exactly
    once, and a batch holds the same samples whatever the number of ranks.

    Args:
        source: Shards or raw records.
        rule: What images are resized by; None leaves them.
        batch_size: Samples of a batch.
        world: This process.
        limits: What an image may be at most.
        num_reader_threads: Decode and resize.
        num_fetch_threads: Requests at a time to a remote source.
        max_total_pixels: What the images of a sample may have together; 0: any number.
    """

    def __init__(
        self,
        source: Source,
        rule: ResizeRule | None,
        batch_size: int,
        world: World | None = None,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
        num_reader_threads: int = 2,
        num_fetch_threads: int = 16,
        max_total_pixels: int = 0,
    ) -> None:
        self._source = source
        self._rule, self._limits = rule, limits
        self._max_total_pixels = max_total_pixels
        self._num_reader_threads, self._num_fetch_threads = num_reader_threads, num_fetch_threads
        self._batch_size = batch_size
        world = world or World()
        self._ends = np.cumsum(source.shard_counts)
        self.num_samples_in_all = int(self._ends[-1]) if len(self._ends) else 0
        """Samples of the source."""
        num_batches = -(-self.num_samples_in_all // batch_size)
        self.batches = range(world.rank, num_batches, world.world_size)
        """Numbers of this rank's batches."""

    @property
    def num_samples(self) -> int:
        """Samples of this rank."""
        return sum(len(self._ordinals(batch)) for batch in self.batches)

    def __iter__(self) -> Iterator[OrderedBatch]:
        """Reads this rank's batches in order.

        Raises:
            StoreError: the source cannot be read.
        """
        num_ahead = _NUM_DECODED_BATCHES
        if self._source.is_remote:
            num_ahead = max(num_ahead, -(-_NUM_AHEAD_REMOTE // self._batch_size))
        fetcher = Fetcher([self._source], self._num_fetch_threads if self._source.is_remote else 1)
        decoders = PriorityPool(self._num_reader_threads, "reader")
        fetching: dict[int, list[FetchRequest]] = {}
        decoding: dict[int, list[Future[_Opened]]] = {}
        try:
            for number, batch in enumerate(self.batches):
                self._announce(self.batches[number : number + _NUM_ANNOUNCED_BATCHES])
                for near in self.batches[number : number + num_ahead]:
                    if near not in fetching:
                        fetching[near] = self._wanted(near)
                        fetcher.start(fetching[near])
                for near in self.batches[number : number + _NUM_DECODED_BATCHES]:
                    if near not in decoding:
                        decoding[near] = [self._start(decoders, one) for one in fetching[near]]
                opened = [future.result() for future in decoding.pop(batch)]
                del fetching[batch]
                outcomes, stored = [one.outcome for one in opened], [one.stored for one in opened]
                yield OrderedBatch(batch * self._batch_size, outcomes, stored)
        finally:
            fetcher.close()
            decoders.close()

    def _ordinals(self, batch: int) -> range:
        start = batch * self._batch_size
        return range(start, min(start + self._batch_size, self.num_samples_in_all))

    def _announce(self, batches: range) -> None:
        """Tells a source that keeps shards which ones are needed next, in order."""
        if not self._source.keeps_shards:
            return
        ends = (self._ordinals(batch)[end] for batch in batches for end in (0, -1))
        shards = dict.fromkeys(_place(self._ends, ordinal).shard for ordinal in ends)
        self._source.expect(shards, len(shards))

    def _wanted(self, batch: int) -> list[FetchRequest]:
        places = [_place(self._ends, ordinal) for ordinal in self._ordinals(batch)]
        return [FetchRequest(batch, place, PendingSamples(1), 0) for place in places]

    def _start(self, pool: PriorityPool, one: FetchRequest) -> "Future[_Opened]":
        opened: Future[_Opened] = Future()
        open_it = partial(self._open, one.place, one.pending)
        one.pending.then(lambda: pool.submit(one.priority, open_it, opened))
        return opened

    def _open(self, place: Place, pending: PendingSamples) -> _Opened:
        try:
            return self._decoded(pending.take(0).sample())
        except Exception as error:
            if not is_damage(error):
                raise
        # Once more, and not from a local copy: what was read may have been damaged on its way.
        self._source.invalidate(place.shard)
        try:
            return self._decoded(self._source.read(place.shard, place.sample))
        except Exception as error:
            if not is_damage(error):
                raise
            return _Opened(BadSample(self._source.describe(place.shard, place.sample), error), None)

    def _decoded(self, sample: Sample) -> _Opened:
        checks = self._rule, self._limits, self._max_total_pixels
        return _Opened(StreamSample.from_sample(sample, *checks), sample)


def read_at(source: Source, ordinal: int) -> Sample:
    """One sample at rest, by its place in the whole source, from 0.

    Raises:
        StoreError: the source cannot be read.
        ShardFormatError, RecordError, ImageError: the sample cannot be used.
    """
    place = _place(np.cumsum(source.shard_counts), ordinal)
    return source.read(place.shard, place.sample)


def spread_samples(source: Source, count: int) -> list[Sample]:
    """Up to ``count`` samples at equal distances over a source; damaged ones are left out.

    Raises:
        StoreError: the source cannot be read.
    """
    total = int(source.shard_counts.sum())
    count = min(count, total)
    found = (_sound(source, number * total // count) for number in range(count))
    return [sample for sample in found if sample is not None]


def _sound(source: Source, ordinal: int) -> Sample | None:
    try:
        return read_at(source, ordinal)
    except Exception as error:
        if not is_damage(error):
            raise
        return None


def _place(ends: Indices, ordinal: int) -> Place:
    shard = int(np.searchsorted(ends, ordinal, side="right"))
    first = int(ends[shard - 1]) if shard else 0
    return Place(0, shard, ordinal - first)
