"""Which sample of which source fills which slot of a blend, in any round.

In an epoch of its own, a source that is owed F + f slots (see ``blend.py``) and lasts for T rounds
is cut into F lanes of T samples for its fixed slots, one more lane for its turns at shared slots,
and a reserve::

    ordinal   0 ...... T-1 | T ..... 2*T-1 | ... | F*T .......... | ......... N-1
              lane 0         lane 1                lane of the turns  reserve

so nothing of it is read twice before it has begun again. When its T rounds are over, a source goes
on with its next epoch, in a new permutation, while the others are still in theirs::

    round       0         T_b       2*T_b  T_a     3*T_b
    source a    | epoch 0                  | epoch 1 ...
    source b    | epoch 0 | epoch 1 | epoch 2 ...
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from grpo_stream.errors import ConfigError
from grpo_stream.order.blend import Blend
from grpo_stream.order.epoch_plan import stand_in_places
from grpo_stream.order.permutation import EpochOrder, Indices

Places = tuple[Indices, Indices, Indices]
"""Source, shard (place in its manifest), sample (place in the shard)."""


@dataclass(frozen=True, eq=False)
class BlendPlan:
    """The places of a blend, by round: generation batches counted from the first of epoch 0.

    Args:
        blend: Slots by source.
        shard_counts: For each source, int64, shape (num_shards,): samples per shard.
        seeds: For each source, the seed of its order.
        block_shards: Shards per block inside which samples are mixed.

    Raises:
        ConfigError: a source with fewer samples than it has slots.
    """

    blend: Blend
    shard_counts: Sequence[Indices]
    seeds: Sequence[int]
    block_shards: int
    num_samples: tuple[int, ...] = field(init=False)
    """N of each source."""
    num_rounds: tuple[int, ...] = field(init=False)
    """T of each source: rounds after which it begins its next epoch."""
    _order: Callable[[int, int], EpochOrder] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        num_samples = tuple(int(np.sum(counts)) for counts in self.shard_counts)
        rounds = (self.blend.num_rounds_of(i, number) for i, number in enumerate(num_samples))
        object.__setattr__(self, "num_samples", num_samples)
        object.__setattr__(self, "num_rounds", tuple(rounds))
        # The epochs that a source comes from, is in and goes to.
        cache = lru_cache(maxsize=3 * len(num_samples))
        object.__setattr__(self, "_order", cache(self._make_order))
        self._check_sizes()

    def places(self, rounds: Indices, slots: range) -> Places:
        """What ``slots`` read in ``rounds``.

        Args:
            rounds: int64, shape (n,), each at least 0.
            slots: Within [0, num_lanes).

        Returns:
            Source, shard and sample, int64, each of shape (n, len(slots)).
        """
        source, lane = self.blend.lanes_of(rounds, slots)
        shard, sample = np.empty_like(source), np.empty_like(source)
        for i in np.unique(source).tolist():
            rows, columns = np.nonzero(source == i)
            epochs, ordinals = self._ordinals(i, rounds[rows], lane[rows, columns])
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                at = rows[here], columns[here]
                shard[at], sample[at] = self._order(i, epoch).locate(ordinals[here])
        return source, shard, sample

    def stand_ins(self, round_number: int, slot: int, count: int) -> Places:
        """What to try in turn when a slot cannot be read, of the same source: shape (count,).

        First the reserve of the source's epoch, from a place that depends on (round, slot) alone,
        then the samples that follow the slot's own one.
        """
        rounds = np.array([round_number])
        source, lane = self.blend.lanes_of(rounds, range(slot, slot + 1))
        i = int(source[0, 0])
        num_rounds = self.num_rounds[i]
        epochs, own = self._ordinals(i, rounds, lane[0])
        ordinals = stand_in_places(
            self.num_samples[i],
            self.num_regular(i),
            int(own[0]),
            round_number % num_rounds * self.blend.num_lanes + slot,
            count,
        )
        shard, sample = self._order(i, int(epochs[0])).locate(ordinals)
        return np.full_like(shard, i), shard, sample

    def num_regular(self, source: int) -> int:
        """Samples of a source that are in lanes; those behind them are its reserve."""
        num_rounds = self.num_rounds[source]
        num_fixed = self.blend.num_fixed[source]
        return num_fixed * num_rounds + self.blend.most_shared(source, num_rounds)

    def _ordinals(self, i: int, rounds: Indices, lane: Indices) -> tuple[Indices, Indices]:
        """Epoch of source ``i`` and ordinal in it, for a lane of it in each of ``rounds``."""
        num_rounds = self.num_rounds[i]
        epochs = rounds // num_rounds
        turns = self.blend.num_shared_before(i, rounds)
        turns -= self.blend.num_shared_before(i, epochs * num_rounds)
        along = np.where(lane == self.blend.num_fixed[i], turns, rounds % num_rounds)
        return epochs, lane * num_rounds + along

    def _make_order(self, i: int, epoch: int) -> EpochOrder:
        return EpochOrder(self.shard_counts[i], self.seeds[i], epoch, self.block_shards)

    def _check_sizes(self) -> None:
        for number, num_rounds, weight in zip(
            self.num_samples, self.num_rounds, self.blend.weights, strict=True
        ):
            if num_rounds == 0:
                owed = float(weight * self.blend.num_lanes)
                most = int(number / weight)
                raise ConfigError(
                    "num_lanes",
                    self.blend.num_lanes,
                    f"a data set of {number} samples is to give {weight} of each generation batch, "
                    f"which is {owed:.6g} of its samples; "
                    + (f"use at most {most} prompts, or less weight" if most else "leave it out"),
                )
