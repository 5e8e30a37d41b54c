"""The prompt stream: which samples this rank reads in a generation batch, and reading them."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

from grpo_stream.config import StreamConfig
from grpo_stream.errors import (
    BadSamplesError,
    ImageError,
    RecordError,
    ShardFormatError,
    StoreError,
)
from grpo_stream.images import ResizeRule
from grpo_stream.stream.cursor import Cursor
from grpo_stream.stream.plan import EpochPlan, Indices
from grpo_stream.stream.sources import Source, StreamSample
from grpo_stream.stream.world import World

_MAX_STAND_INS = 16

_BAD_SAMPLE = (ImageError, RecordError, ShardFormatError, StoreError)


@dataclass
class StreamCounters:
    """What this rank has read so far; filled by several threads under the stream's lock."""

    num_samples: int = 0
    """Samples delivered: each was fetched, decoded and resized once."""
    num_bad_by_cause: Counter[str] = field(default_factory=Counter)
    """Samples that could not be used, by cause."""
    quarantine: list[str] = field(default_factory=list)
    """Where the bad samples lie, ``shard/sample``, in the order they were met."""


class PromptStream:
    """Samples by (epoch, generation batch, slot). Holds no position: see ``loader.PromptLoader``.

    Args:
        source: Shards or raw records.
        config: Order and limits.
        world: This process; its slots are a contiguous run of each generation batch.

    Raises:
        ConfigError: the world size does not divide ``config.num_lanes``, or there are fewer
            samples than lanes.
    """

    def __init__(self, source: Source, config: StreamConfig, world: World | None = None) -> None:
        self.source = source
        self.config = config
        self.world = world or World()
        self.slots = self.world.slots(config.num_lanes)
        self.counters = StreamCounters()
        self._lock = threading.Lock()
        self._plan_cache = lru_cache(maxsize=2)(self._make_plan)
        self.num_batches = self.plan(0).num_batches
        """Generation batches of an epoch, the same in every epoch and on every rank."""

    def plan(self, epoch: int) -> EpochPlan:
        """The order of one epoch."""
        return self._plan_cache(epoch)

    def cursor(self, epoch: int = 0, batch_index: int = 0) -> Cursor:
        """The place before generation batch ``batch_index`` of ``epoch`` in this stream's order."""
        return Cursor(
            digest=self.source.digest,
            seed=self.config.seed,
            num_lanes=self.config.num_lanes,
            block_shards=self.config.block_shards,
            epoch=epoch,
            batch_index=batch_index,
        )

    def read_slot(self, epoch: int, batch_index: int, slot: int) -> StreamSample:
        """Fetches, decodes and resizes the sample of one slot; a stand-in where it is bad.

        Which sample stands in depends on (epoch, batch, slot) alone, so every world size sees
        the same one.

        Raises:
            BadSamplesError: more than ``max_bad_samples`` were bad on this rank, or no stand-in
                could be read either.
        """
        plan = self.plan(epoch)
        own = plan.slot_ordinals(batch_index, range(slot, slot + 1))
        sample = self._try_read(plan, own)
        if sample is not None:
            return sample
        for ordinal in plan.stand_ins(batch_index, slot, _MAX_STAND_INS):
            sample = self._try_read(plan, ordinal[None])
            if sample is not None:
                return sample
        raise BadSamplesError(
            f"epoch {epoch}, generation batch {batch_index}, slot {slot}: the sample and "
            f"{_MAX_STAND_INS} stand-ins cannot be read; causes so far: "
            f"{dict(self.counters.num_bad_by_cause)}"
        )

    def read_batch(self, epoch: int, batch_index: int) -> list[StreamSample]:
        """This rank's samples of one generation batch, in slot order, read one after another."""
        return [self.read_slot(epoch, batch_index, slot) for slot in self.slots]

    def _try_read(self, plan: EpochPlan, ordinal: Indices) -> StreamSample | None:
        (shard,), (place,) = plan.locate(ordinal)
        try:
            stored = self.source.read(int(shard), int(place))
            sample = StreamSample.from_sample(stored, self.config.resize, self.config.limits)
        except _BAD_SAMPLE as error:
            self._count_bad(f"{shard}/{place}", error.cause, error)
            return None
        with self._lock:
            self.counters.num_samples += 1
        return sample

    def _make_plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(
            shard_counts=self.source.shard_counts,
            num_lanes=self.config.num_lanes,
            seed=self.config.seed,
            epoch=epoch,
            block_shards=self.config.block_shards,
        )

    def _count_bad(self, where: str, cause: str, error: Exception) -> None:
        with self._lock:
            self.counters.num_bad_by_cause[cause] += 1
            self.counters.quarantine.append(where)
            total = self.counters.num_bad_by_cause.total()
        if total > self.config.max_bad_samples:
            raise BadSamplesError(
                f"{total} samples could not be read on rank {self.world.rank}, the tolerance is "
                f"max_bad_samples={self.config.max_bad_samples}; by cause: "
                f"{dict(self.counters.num_bad_by_cause)}; last (shard/sample {where}): {error}"
            ) from error


def read_in_order(
    source: Source, rule: ResizeRule | None, batch_size: int, num_threads: int = 2
) -> Iterator[list[StreamSample]]:
    """All samples of a source in its own order, decoded and resized, in lists of ``batch_size``."""

    def read(place: tuple[int, int]) -> StreamSample:
        return StreamSample.from_sample(source.read(*place), rule)

    places = [
        (shard, sample)
        for shard, count in enumerate(source.shard_counts.tolist())
        for sample in range(count)
    ]
    with ThreadPoolExecutor(num_threads, "reader") as pool:
        for start in range(0, len(places), batch_size):
            yield list(pool.map(read, places[start : start + batch_size]))
