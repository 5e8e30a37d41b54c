"""The prompt stream: which samples this rank reads in a generation batch, and reading them."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from grpo_stream.errors import (
    BadSamplesError,
    ConfigError,
    ImageError,
    RecordError,
    ShardFormatError,
    StoreError,
)
from grpo_stream.order.blend import Weight
from grpo_stream.order.cursor import Cursor
from grpo_stream.order.stream_plan import SourceCounts, StreamPlan
from grpo_stream.shards.fast_rows import row_maker
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.sources import Encoded, Source
from grpo_stream.stream.stream_sample import StreamSample, decode_sample
from grpo_stream.stream.world import World

Open = Callable[[Sample, StreamConfig], Any]
"""What is made of a sample at rest; a function of a module, so that processes can run it."""

Outcome = StreamSample | Exception
"""A sample, or how it is damaged."""

_MAX_STAND_INS = 16
_WINDOW_SLOTS = 4096  # looked up together: alone, a sample costs a hundred times as much
_MIN_WINDOW_BATCHES = 16
_DAMAGED = (ImageError, RecordError, ShardFormatError)
_DAMAGED_STORE_CAUSES = ("short_read",)  # a shard that was cut off
_OF_WHOLE_SHARDS = ("bad_index", "foreign_index")  # all samples of the shard would be bad
_REREAD_CAUSES = ("checksum", "bad_header", "truncated")


_REMEDY = "see what is wrong with shard-builder verify, and leave such records out of the build"
_REMEDIES = dict.fromkeys(
    ("checksum", "bad_header", "truncated", "short_read"),
    "the shard's bytes are not those that were built: shard-builder verify names the first fault; "
    "copy the shard anew, or build it again",
)


class Place(NamedTuple):
    """Where a sample lies."""

    source: int
    shard: int
    """Place in the source's manifest."""
    sample: int
    """Place in the shard."""


class SlotPlace(NamedTuple):
    """A slot of a generation batch, and the sample that it reads."""

    epoch: int
    batch_index: int
    slot: int
    place: Place


_as_place, _as_slot_place = row_maker(Place), row_maker(SlotPlace)


@dataclass
class StreamCounters:
    """What this rank has read so far; filled by several threads under the stream's lock."""

    num_samples: int = 0
    """Samples delivered: each was fetched, decoded and resized once."""
    quarantine: dict[str, str] = field(default_factory=dict)
    """The bad samples (``Source.identity``) and the cause; as met. They are not read again."""
    num_read_again: int = 0
    """Samples whose bytes were wrong at first and right at the second reading."""

    @property
    def num_bad_by_cause(self) -> Counter[str]:
        """Samples that could not be used, by cause."""
        return Counter(self.quarantine.copy().values())


class PromptStream:
    """Samples by (epoch, generation batch, slot). Holds no position: see ``loader.PromptLoader``.

    Args:
        source: Shards or raw records, or several of them.
        config: Order and limits.
        world: This process; its slots are a contiguous run of each generation batch.
        weights: Shares of the sources in the prompts of every generation batch; all alike if not
            given.
        open_sample: What is made of a sample at rest, where it is not to be decoded and resized.

    Raises:
        ConfigError: the world size does not divide ``config.num_lanes``, or there are fewer
            samples than lanes.
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        config: StreamConfig,
        world: World | None = None,
        *,
        weights: Sequence[Weight] | None = None,
        open_sample: Open = decode_sample,
    ) -> None:
        self.sources = tuple(source) if isinstance(source, Sequence) else (source,)
        self.config = config
        self.world = world or World()
        self.open_sample = open_sample
        self.slots = self.world.slots(config.num_lanes)
        self.counters = StreamCounters()
        self.plan = StreamPlan(
            [
                SourceCounts(one.digest, one.shard_counts, weight)
                for one, weight in zip(self.sources, _checked(weights, self.sources), strict=True)
            ],
            config.num_lanes,
            config.stream_seed,
            config.block_shards,
        )
        """The order."""
        self._lock = threading.Lock()
        self._bad: set[Place] = set()
        self._window: tuple[int, range, list[list[Place]]] = (0, range(0), [])

    @property
    def num_batches(self) -> int:
        """Generation batches of an epoch, the same in every epoch and on every rank."""
        return self.plan.num_batches

    @property
    def is_remote(self) -> bool:
        """Whether a source waits for a network."""
        return any(source.is_remote for source in self.sources)

    @property
    def keeps_shards(self) -> bool:
        """Whether whole shards are fetched to a local cache."""
        return any(source.keeps_shards for source in self.sources)

    def cursor(self, epoch: int = 0, batch_index: int = 0) -> Cursor:
        """The place before generation batch ``batch_index`` of ``epoch`` in this stream's order."""
        return self.plan.cursor(epoch, batch_index)

    def resume(self, saved: Cursor) -> None:
        """Takes the segments of a saved cursor over.

        Raises:
            CursorError: it was saved with other data or another order, or is no place in it.
        """
        self.plan = self.plan.resumed(saved)
        self._window = (0, range(0), [])

    def slot_places(self, epoch: int, batch_index: int) -> list[SlotPlace]:
        """What this rank's slots read in a generation batch, in slot order.

        Raises:
            IndexError: the epoch has no such batch.
        """
        window_epoch, batches, places = self._window
        if window_epoch != epoch or batch_index not in batches:
            num_batches = self.plan.num_batches_in(epoch)
            if not 0 <= batch_index < num_batches:
                raise IndexError(f"batch {batch_index} of {num_batches}")
            ahead = max(_MIN_WINDOW_BATCHES, _WINDOW_SLOTS // len(self.slots))
            batches = range(batch_index, min(batch_index + ahead, num_batches))
            places = self._look_up(epoch, batches)
            self._window = (epoch, batches, places)
        own = places[batch_index - batches.start]
        return list(map(_as_slot_place, zip(repeat(epoch), repeat(batch_index), self.slots, own)))

    def attempt(self, one: SlotPlace, encoded: Callable[[], Encoded] | None = None) -> Outcome:
        """The sample of a slot, or how it is damaged.

        Args:
            one: The slot.
            encoded: Gives its bytes, where they have been fetched.

        Raises:
            StoreError: the source cannot be read: no fault of the sample's.
        """
        place = one.place
        known = self.known_damage(place)
        if known is not None:
            return known
        try:
            if encoded is None:
                found = self.sources[place.source].read(place.shard, place.sample)
            else:
                found = encoded().sample()
            sample: StreamSample = self.open_sample(found, self.config)
        except Exception as error:
            if not is_damage(error):
                raise
            return error
        return sample

    def known_damage(self, place: Place) -> Exception | None:
        """The error for a sample that was bad before: it is not read again."""
        return _KnownBadError("known", "") if self._bad and place in self._bad else None

    def resolve_all(
        self, slots: Sequence[SlotPlace], outcomes: Sequence[Outcome]
    ) -> list[StreamSample]:
        """:meth:`resolve` for all slots of a generation batch, in their order."""
        sound = [one for one in outcomes if not isinstance(one, Exception)]
        if len(sound) < len(outcomes):
            return list(map(self.resolve, slots, outcomes))
        with self._lock:
            self.counters.num_samples += len(sound)
        return sound

    def resolve(self, one: SlotPlace, outcome: Outcome) -> StreamSample:
        """The sample that a slot delivers: what :meth:`attempt` gave, or a stand-in.

        A sample whose bytes did not fit their checksums is read once more, not from a cache.
        Which sample stands in depends on (epoch, batch, slot) alone, so every world size sees
        the same one.

        Raises:
            BadSamplesError: more than ``max_bad_samples`` were bad on this rank, or no stand-in
                could be read either.
            StoreError: the source cannot be read.
        """
        if isinstance(outcome, Exception):
            outcome = self._read_again(one, outcome)
        if not isinstance(outcome, Exception):
            return self._counted(outcome)
        self._count_bad(one.place, outcome)
        return self._stand_in(one)

    def stand_in(self, one: SlotPlace, key: str, error: Exception) -> StreamSample:
        """Another sample for one that was read, and that a batch cannot be made of.

        Args:
            one: The slot.
            key: Of what it delivered: its own sample, or a stand-in.
            error: What was thrown at that.

        Raises:
            BadSamplesError: as :meth:`resolve`.
        """
        cause = error.cause if isinstance(error, _DAMAGED) else "not_collated"
        detail = error.detail if isinstance(error, _DAMAGED) else f"{type(error).__name__}: {error}"
        # What a slot delivers is the first of its candidates that is not known to be bad.
        stand_ins = self.plan.stand_ins(one.epoch, one.batch_index, one.slot, _MAX_STAND_INS)
        candidates = (place for place in (one.place, *_as_places(stand_ins)))
        place = next(place for place in candidates if place not in self._bad)
        with self._lock:
            self.counters.num_samples -= 1
        told = RecordError(cause, f"key={key!r}: {detail}")
        self._count_bad(place, told)
        try:
            return self._stand_in(one)
        except BadSamplesError as none_left:
            raise BadSamplesError(f"{none_left}; at last {told}") from error

    def _stand_in(self, one: SlotPlace) -> StreamSample:
        stand_ins = self.plan.stand_ins(one.epoch, one.batch_index, one.slot, _MAX_STAND_INS)
        for place in _as_places(stand_ins):
            other = one._replace(place=place)
            outcome = self._read_again(other, self.attempt(other))
            if not isinstance(outcome, Exception):
                return self._counted(outcome)
            self._count_bad(place, outcome)
        raise BadSamplesError(
            f"epoch {one.epoch}, generation batch {one.batch_index}, slot {one.slot}: the sample "
            f"and {_MAX_STAND_INS} stand-ins cannot be read, the last of them "
            f"{self.sources[place.source].describe(place.shard, place.sample)}; causes so far: "
            f"{dict(self.counters.num_bad_by_cause)}; {_REMEDY}"
        )

    def read_batch(self, epoch: int, batch_index: int) -> list[StreamSample]:
        """This rank's samples of one generation batch, in slot order, read one after another."""
        places = self.slot_places(epoch, batch_index)
        return self.resolve_all(places, list(map(self.attempt, places)))

    def metrics(self) -> dict[str, float]:
        """What reading took so far, summed over the sources."""
        total = Counter[str]()
        for source in self.sources:
            total.update(source.metrics())
        return dict(total)

    def close(self) -> None:
        """Ends what the sources do in the background."""
        for source in self.sources:
            source.close()

    def _look_up(self, epoch: int, batches: range) -> list[list[Place]]:
        columns = self.plan.places(epoch, batches, self.slots)
        rows = np.stack(columns, axis=-1).tolist()
        places = [list(map(_as_place, row)) for row in rows]
        for number, source in enumerate(self.sources):
            shards = dict.fromkeys(
                place.shard for row in places for place in row if place.source == number
            )
            source.expect(shards, len(self.slots) * self.config.block_shards)
        return places

    def _read_again(self, one: SlotPlace, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, ShardFormatError) or outcome.cause not in _REREAD_CAUSES:
            return outcome
        self.sources[one.place.source].invalidate(one.place.shard)
        outcome = self.attempt(one)
        if not isinstance(outcome, Exception):
            with self._lock:
                self.counters.num_read_again += 1
        return outcome

    def _counted(self, sample: StreamSample) -> StreamSample:
        with self._lock:
            self.counters.num_samples += 1
        return sample

    def _count_bad(self, place: Place, error: Exception) -> None:
        if isinstance(error, _KnownBadError):
            return
        source, counters = self.sources[place.source], self.counters
        where = source.describe(place.shard, place.sample)
        with self._lock:
            self._bad.add(place)
            cause = getattr(error, "cause", "unknown")
            counters.quarantine[source.identity(place.shard, place.sample)] = cause
            total = len(counters.quarantine)
            num_here = sum(bad[:2] == place[:2] for bad in self._bad)
        if total > self.config.max_bad_samples:
            raise BadSamplesError(
                f"{total} samples could not be read on rank {self.world.rank}, the tolerance is "
                f"max_bad_samples={self.config.max_bad_samples}; by cause: "
                f"{dict(counters.num_bad_by_cause)}; last ({where}, one of {num_here} bad samples "
                f"of that shard): {error}; {_REMEDIES.get(cause, _REMEDY)}"
            ) from error


class _KnownBadError(RecordError):
    """The sample was bad before and is not read again."""


def is_damage(error: BaseException) -> bool:
    """Whether a sample is to blame, so that another may stand in, and not its store."""
    if isinstance(error, StoreError):
        return error.cause in _DAMAGED_STORE_CAUSES
    if isinstance(error, ShardFormatError) and error.cause in _OF_WHOLE_SHARDS:
        return False
    return isinstance(error, _DAMAGED)


def _as_places(columns: Sequence["np.ndarray[tuple[int], np.dtype[np.int64]]"]) -> list[Place]:
    return list(map(_as_place, np.stack(columns, axis=-1).tolist()))


def _checked(weights: Sequence[Weight] | None, sources: Sequence[Source]) -> Sequence[Weight]:
    if weights is None:
        return [1] * len(sources)
    if len(weights) != len(sources):
        expected = f"one for each of the {len(sources)} data sets"
        raise ConfigError("weights", list(weights), expected)
    return weights
