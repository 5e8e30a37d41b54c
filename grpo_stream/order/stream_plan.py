"""The order of a whole run: one data set or a blend of several, epoch after epoch.

One source: an epoch is an :class:`EpochPlan`; every sample is read once an epoch, or is in its
reserve. Several sources: slots go to the sources as ``blend.py`` says, and each source has epochs
of its own (``blend_plan.py``). What a blend calls an epoch is then T = sum(N_i) // L generation
batches, no more than a way to count: round = epoch * T + batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache

import numpy as np

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.order.blend import Blend, Weight, exact_weights
from grpo_stream.order.blend_plan import BlendPlan, Places
from grpo_stream.order.cursor import Cursor
from grpo_stream.order.epoch_plan import EpochPlan, Segments, check_within, cut_segments
from grpo_stream.order.permutation import Indices, derive_key


@dataclass(frozen=True, eq=False)
class SourceCounts:
    """What the order needs to know of a data set."""

    digest: str
    """The manifest's digest."""
    shard_counts: Indices
    """int64, shape (num_shards,): samples per shard, in the manifest's order."""
    weight: Weight = 1
    """Share of the prompts, relative to the other sources' weights."""


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """Which sample fills which slot of which generation batch, on every rank.

    World size, ranks, threads and timing appear nowhere. One source's order is that of
    :class:`EpochPlan` with the same seed. In a blend each source's seed is derived from ``seed``
    and its digest, so the order in which the sources are named changes nothing but their numbers.

    Args:
        sources: The data sets.
        num_lanes: L, the prompts of a generation batch over all ranks.
        seed: Seed of the run's order.
        block_shards: Shards per block inside which samples are mixed.
        segments: Finished segments of the epoch ``segments_epoch``; see ``plan.py``.
        segments_epoch: The epoch that has them. Epochs before it are not part of the plan.

    Raises:
        ConfigError: a source with fewer samples than lanes, the same data twice, weights that
            cannot be kept exactly, or segments of a blend.
    """

    sources: Sequence[SourceCounts]
    num_lanes: int
    seed: int
    block_shards: int
    segments: Segments = ()
    segments_epoch: int = 0
    num_batches: int = field(init=False)
    """T: generation batches of an epoch that is not a segment's rest."""
    _num_batches_left: int = field(init=False, repr=False)  # in segments_epoch
    _by_digest: tuple[int, ...] = field(init=False, repr=False)
    _blended: BlendPlan = field(init=False, repr=False)  # its sources are in digest order
    _epoch_plan: "Callable[[int], EpochPlan]" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digests = [source.digest for source in self.sources]
        if not digests or len(set(digests)) < len(digests):
            raise ConfigError(
                "shards", digests, "at least one data set, and each only once; give it more weight"
            )
        if len(digests) > 1 and self.segments:
            raise ConfigError(
                "num_lanes",
                self.num_lanes,
                "the number of prompts per generation batch of a blend cannot change within an "
                f"epoch; continue with {self.segments[-1][0]}",
            )
        by_digest = tuple(sorted(range(len(digests)), key=digests.__getitem__))
        sources = [self.sources[i] for i in by_digest]
        num_samples = sum(int(np.sum(source.shard_counts)) for source in sources)
        if num_samples < self.num_lanes:
            raise ConfigError(
                "num_lanes",
                self.num_lanes,
                f"the data set has only {num_samples} samples; use at most that many prompts per "
                "generation batch",
            )
        blended = BlendPlan(
            Blend(exact_weights([source.weight for source in sources]), self.num_lanes),
            [source.shard_counts for source in sources],
            [derive_key("source", self.seed, source.digest) for source in sources],
            self.block_shards,
        )
        _, rest = cut_segments(num_samples, self.num_lanes, self.segments)
        for name, value in (
            ("num_batches", num_samples // self.num_lanes),
            ("_num_batches_left", rest.num_batches),
            ("_by_digest", by_digest),
            ("_blended", blended),
            ("_epoch_plan", lru_cache(maxsize=3)(self._make_epoch_plan)),
        ):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[type["StreamPlan"], tuple[object, ...]]:
        # The caches cannot be pickled, and another process fills its own.
        return type(self), (
            tuple(self.sources),
            self.num_lanes,
            self.seed,
            self.block_shards,
            self.segments,
            self.segments_epoch,
        )

    def num_batches_in(self, epoch: int) -> int:
        """Generation batches of ``epoch``: ``num_batches``, or those of what segments left.

        That may be none, where less than a batch was left.
        """
        return self._num_batches_left if self._segments_of(epoch) else self.num_batches

    def cursor(self, epoch: int = 0, batch_index: int = 0) -> Cursor:
        """The place before generation batch ``batch_index`` of ``epoch`` in this order."""
        return Cursor(
            digest="+".join(self.sources[i].digest for i in self._by_digest),
            seed=self.seed,
            num_lanes=self.num_lanes,
            block_shards=self.block_shards,
            epoch=epoch,
            batch_index=batch_index,
            weights=" ".join(str(weight) for weight in self._blended.blend.weights),
            segments=self._segments_of(epoch),
        )

    def resumed(self, saved: Cursor) -> "StreamPlan":
        """The plan in which ``saved`` is a place: this one, with the cursor's segments.

        Raises:
            CursorError: it was saved with other data or another order, or is no place in it.
        """
        self.cursor().check_same_order(saved)
        try:
            plan = replace(self, segments=saved.segments, segments_epoch=saved.epoch)
        except ConfigError as error:
            raise CursorError(
                f"segments={saved.segments!r} is damaged: {error.expected}"
            ) from error
        num_batches = plan.num_batches_in(saved.epoch)
        if saved.batch_index > num_batches:
            raise CursorError(
                f"batch {saved.batch_index} of an epoch of {num_batches} batches: start from an "
                "older checkpoint"
            )
        return plan

    @property
    def weights(self) -> tuple[Fraction, ...]:
        """Exact shares of the sources, in the order given; they add up to one."""
        weights = self._blended.blend.weights
        return tuple(weights[self._by_digest.index(i)] for i in range(len(weights)))

    @property
    def source_batches(self) -> tuple[int, ...]:
        """Generation batches after which each source begins its next epoch, in the order given."""
        num_rounds = self._blended.num_rounds
        return tuple(num_rounds[self._by_digest.index(i)] for i in range(len(num_rounds)))

    def place_after(self, epoch: int, batch_index: int, num_batches: int = 0) -> tuple[int, int]:
        """(epoch, batch) that comes ``num_batches`` after another; costs the same for any number.

        An epoch's end is the next epoch's start, so with 0 this gives a place that can be read.
        """
        batch_index += num_batches
        in_epoch = self.num_batches_in(epoch)
        if batch_index < in_epoch:
            return epoch, batch_index
        epochs, batch_index = divmod(batch_index - in_epoch, self.num_batches)
        return epoch + 1 + epochs, batch_index

    def places(self, epoch: int, batches: range, slots: range) -> Places:
        """What ``slots`` read in ``batches`` of an epoch.

        Args:
            epoch: Counted from 0.
            batches: Within [0, num_batches_in(epoch)).
            slots: Within [0, num_lanes).

        Returns:
            Source, shard and sample, int64, each of shape (len(batches), len(slots)).

        Raises:
            IndexError: a batch or slot that the epoch does not have.
        """
        if len(self.sources) == 1:
            plan = self._epoch_plan(epoch)
            shard, sample = plan.locate(plan.ordinals(batches, slots))
            return np.zeros_like(shard), shard, sample
        check_within("batch", batches, self.num_batches)
        check_within("slot", slots, self.num_lanes)
        rounds = epoch * self.num_batches + np.asarray(batches, dtype=np.int64)
        source, shard, sample = self._blended.places(rounds, slots)
        return np.asarray(self._by_digest)[source], shard, sample

    def stand_ins(self, epoch: int, batch_index: int, slot: int, count: int) -> Places:
        """What to try in turn when a slot of a batch cannot be read: of the same source.

        First the reserve of the source's epoch, which no slot reads in it, from a place that
        depends on (batch, slot) alone; when all of that was tried, the samples that follow the
        slot's own one.

        Returns:
            Source, shard and sample, int64, each of shape (count,).
        """
        if len(self.sources) == 1:
            plan = self._epoch_plan(epoch)
            shard, sample = plan.locate(plan.stand_ins(batch_index, slot, count))
            return np.zeros_like(shard), shard, sample
        source, shard, sample = self._blended.stand_ins(
            epoch * self.num_batches + batch_index, slot, count
        )
        return np.asarray(self._by_digest)[source], shard, sample

    def reserve(self, epoch: int) -> Places:
        """Samples that no batch of ``epoch`` reads; none of a blend, whose sources have none in it.

        Returns:
            Source, shard and sample, int64, each of shape (reserve,).
        """
        if len(self.sources) > 1:
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing
        plan = self._epoch_plan(epoch)
        shard, sample = plan.locate(plan.reserve_ordinals())
        return np.zeros_like(shard), shard, sample

    def _segments_of(self, epoch: int) -> Segments:
        return self.segments if epoch == self.segments_epoch else ()

    def _make_epoch_plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(
            self.sources[0].shard_counts,
            self.num_lanes,
            self.seed,
            epoch,
            self.block_shards,
            self._segments_of(epoch),
        )
