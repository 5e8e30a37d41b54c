"""The order of an epoch as arithmetic: nothing is shuffled, stored or replayed.

Let N samples be in S shards. A keyed permutation of (seed, epoch) lays the shards end to end as
one virtual sequence, in which samples are permuted inside blocks of a few shards (``order.py``).
The sequence is cut into L equal lanes of T = N // L samples; prompt slot j of generation batch s
reads ordinal j*T + s::

    ordinal   0 ........ T-1 | T ....... 2T-1 | 2T ...... 3T-1 | ... | L*T .. N-1
              lane 0 (slot 0)  lane 1 (slot 1)  lane 2 (slot 2)         reserve
              ^ batch 0: the first sample of every lane, batch 1: the second, ...

One generation batch so mixes L distant places, while a rank, which owns neighbouring lanes, walks
through few shards at a time. The order depends on the data, the seed, the epoch, L and the block
size, and on nothing else.

**Segments.** A run may continue in mid-epoch with other lanes. What is left after ``done``
batches, the end of every lane and then the reserve, is laid end to end::

    (j*T + done .. (j+1)*T - 1) for every lane j, then L*T .. N-1

That is again a sequence of M = N - done*L places, which is cut into L' lanes of M // L' like any
other. So every sample that has not been read is still read once, or is in the reserve.
"""

from dataclasses import dataclass, field

import numpy as np

from grpo_stream.errors import ConfigError
from grpo_stream.order.permutation import EpochOrder, Indices, derive_key, permute

__all__ = ["EpochPlan", "Indices", "Lanes", "Segments", "derive_key", "permute"]

Segments = tuple[tuple[int, int], ...]
"""(number of lanes, batches done with them) of every finished segment of an epoch, in order."""


@dataclass(frozen=True)
class Lanes:
    """A sequence of ``num_places`` places, cut into ``num_lanes`` lanes of ``num_batches`` each."""

    num_places: int
    num_lanes: int

    @property
    def num_batches(self) -> int:
        """T: places of each lane."""
        return self.num_places // self.num_lanes

    @property
    def num_reserve(self) -> int:
        """Places behind the last lane; fewer than there are lanes."""
        return self.num_places - self.num_batches * self.num_lanes

    def stand_ins(self, batch_index: int, lane: int, count: int) -> Indices:
        """Places to try in turn instead of a lane's place, int64: the reserve, then neighbours."""
        own = lane * self.num_batches + batch_index
        first = batch_index * self.num_lanes + lane
        first_reserve = self.num_batches * self.num_lanes
        return stand_in_places(self.num_places, first_reserve, own, first, count)

    def rest(self, num_done: int, num_lanes: int) -> "Lanes":
        """What is left after ``num_done`` batches, cut into ``num_lanes`` lanes."""
        return Lanes(self.num_places - num_done * self.num_lanes, num_lanes)

    def place_of_rest(self, num_done: int, index: Indices) -> Indices:
        """Places in this sequence of places ``index`` in what is left after ``num_done`` batches.

        Args:
            num_done: Batches that are done, from 0 to ``num_batches``.
            index: int64, any shape, each in [0, num_places - num_done * num_lanes).

        Returns:
            int64, the shape of ``index``.
        """
        left = self.num_batches - num_done  # of each lane
        if left == 0:
            return index + num_done * self.num_lanes
        # Every lane before it, and its own, has lost its first num_done places.
        lanes_begun: Indices = np.minimum(index // left + 1, self.num_lanes)
        return index + num_done * lanes_begun


@dataclass(frozen=True)
class EpochPlan:
    """One epoch's order over shards of the given sample counts, cut into lanes.

    Args:
        shard_counts: int64, shape (num_shards,): samples per shard, in the manifest's order.
        num_lanes: L, the prompts of a generation batch over all ranks.
        seed: Seed of the run's order.
        epoch: Counted from 0.
        block_shards: Shards per block inside which samples are mixed.
        segments: Segments of this epoch that came before; the plan is of what they left.

    Raises:
        ConfigError: fewer samples than lanes, or a segment that the epoch cannot have had. What
            segments left may be less than a batch: all of it is reserve then, and
            ``num_batches`` is 0.
    """

    shard_counts: Indices
    num_lanes: int
    seed: int
    epoch: int
    block_shards: int
    segments: Segments = ()
    order: EpochOrder = field(init=False, repr=False)
    """Where each ordinal of the epoch lies, whatever the lanes are."""
    lanes: Lanes = field(init=False, repr=False)
    """What is left of the epoch, cut into ``num_lanes``."""
    _chain: tuple[tuple[Lanes, int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = EpochOrder(self.shard_counts, self.seed, self.epoch, self.block_shards)
        object.__setattr__(self, "shard_counts", order.shard_counts)
        object.__setattr__(self, "order", order)
        first = self.segments[0][0] if self.segments else self.num_lanes
        if order.num_samples < first:
            raise ConfigError(
                "num_lanes",
                first,
                f"the data set has only {order.num_samples} samples; use at most that many prompts "
                "per generation batch",
            )
        chain, lanes = cut_segments(order.num_samples, self.num_lanes, self.segments)
        object.__setattr__(self, "_chain", chain)
        object.__setattr__(self, "lanes", lanes)

    @property
    def num_samples(self) -> int:
        """N."""
        return self.order.num_samples

    @property
    def num_batches(self) -> int:
        """T: generation batches of the epoch (or of what is left), the same on every rank."""
        return self.lanes.num_batches

    @property
    def num_reserve(self) -> int:
        """Samples behind the last lane: they stand in for samples that cannot be read."""
        return self.lanes.num_reserve

    def ordinals(self, batches: range, slots: range) -> Indices:
        """Ordinals that ``slots`` read in ``batches``: int64, shape (len(batches), len(slots)).

        Raises:
            IndexError: a batch or slot that the epoch does not have.
        """
        check_within("batch", batches, self.num_batches)
        check_within("slot", slots, self.num_lanes)
        starts: Indices = np.asarray(slots, dtype=np.int64) * self.num_batches
        return self._ordinals_of(np.asarray(batches, dtype=np.int64)[:, None] + starts)

    def reserve_ordinals(self) -> Indices:
        """Ordinals that no slot reads in this epoch, int64."""
        first = self.num_batches * self.num_lanes
        return self._ordinals_of(np.arange(first, first + self.num_reserve, dtype=np.int64))

    def stand_ins(self, batch_index: int, slot: int, count: int) -> Indices:
        """Ordinals to try in turn when slot ``slot`` of a batch cannot be read, int64.

        First the reserve, from a place that depends on (batch, slot) alone, then the neighbours
        that follow the slot's own place. Needs no word between ranks.
        """
        return self._ordinals_of(self.lanes.stand_ins(batch_index, slot, count))

    def locate(self, ordinals: Indices) -> tuple[Indices, Indices]:
        """Shard (place in the manifest) and sample (place in the shard) of each ordinal.

        Args:
            ordinals: int64, any shape, each in [0, num_samples).

        Returns:
            Two int64 arrays of that shape.
        """
        return self.order.locate(ordinals)

    def _ordinals_of(self, places: Indices) -> Indices:
        for lanes, num_done in reversed(self._chain):
            places = lanes.place_of_rest(num_done, places)
        return places


def cut_segments(
    num_places: int, num_lanes: int, segments: Segments
) -> tuple[tuple[tuple[Lanes, int], ...], Lanes]:
    """The finished segments, each with the batches done in it, and the lanes of what they left.

    Raises:
        ConfigError: a segment says that more batches were done than it has.
    """
    chain = []
    lanes = Lanes(num_places, segments[0][0] if segments else num_lanes)
    following = [lanes for lanes, _ in segments[1:]] + [num_lanes]
    for (_, num_done), next_num_lanes in zip(segments, following, strict=False):
        if not 0 <= num_done <= lanes.num_batches:
            raise ConfigError(
                "segments",
                segments,
                f"{num_done} batches of {lanes.num_lanes} prompts cannot be done of "
                f"{lanes.num_places} samples; the most is {lanes.num_batches}",
            )
        chain.append((lanes, num_done))
        lanes = lanes.rest(num_done, next_num_lanes)
    return tuple(chain), lanes


def stand_in_places(
    num_places: int, first_reserve: int, own: int, first: int, count: int
) -> Indices:
    """Places to try in turn instead of place ``own`` of a sequence that ends with a reserve.

    Args:
        num_places: Length of the sequence.
        first_reserve: Where the reserve begins.
        own: The place that cannot be read.
        first: Number of the reserve's place that is tried first, modulo its length.
        count: How many to name.

    Returns:
        int64, shape (count,): every place of the reserve once, then those that follow ``own``.
    """
    num_reserve = num_places - first_reserve
    turns = np.arange(count, dtype=np.int64)
    from_reserve = first_reserve + (first + turns) % max(num_reserve, 1)
    neighbours = (own + 1 + turns - num_reserve) % num_places
    return np.where(turns < num_reserve, from_reserve, neighbours)


def check_within(name: str, wanted: range, size: int) -> None:
    """Raises :class:`IndexError` unless all of ``wanted`` is in [0, size)."""
    if wanted and (min(wanted) < 0 or max(wanted) >= size):
        raise IndexError(f"{name} {min(wanted)} to {max(wanted)} of {size}")
