"""Several data sets in exact shares: which source fills which slot of a generation batch.

Source i with weight w_i (the weights add up to one) is owed q_i = w_i * L = F_i + f_i of the L
prompts of every generation batch, where F_i is whole. It owns F_i **fixed** slots; the
R = sum(f_i) **shared** slots rotate between the sources whose f_i is not 0, by a table that
repeats after D rounds, D the common denominator of the f_i::

    w = 0.7, 0.3   L = 4     q = 2.8, 1.2     F = 2, 1     R = 1     D = 5
    slot      0   1   2   3       (3 is shared)
    round 0   a   b   a   a
    round 1   a   b   a   a
    round 2   a   b   a   a
    round 3   a   b   a   a
    round 4   a   b   a   b       b's turn once in five rounds: 14 of a and 6 of b in 20 prompts

What holds, for every source, number of lanes and round (a *round* is a generation batch, counted
from the first of epoch 0 on):

* a round has floor(q_i) or ceil(q_i) prompts of source i; exactly q_i where that is whole;
* the first s rounds have floor(q_i * s) or ceil(q_i * s) of them, so the count is never a whole
  prompt off, however long the run is;
* slots of the sources lie mixed: among any n neighbouring slots, F_i*n/L of them are source i's
  fixed ones, within less than two; so each rank's run of slots has its share of every source.

Nothing is replayed: counts up to any round come from the table's prefix sums.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from grpo_stream.errors import ConfigError
from grpo_stream.order.permutation import Indices
from grpo_stream.order.weighted_rotation import rotation

_MAX_PERIOD = 10_000
_MAX_DENOMINATOR = 10**9
_NEAR_TOTAL = 1000

Weight = Fraction | float | str


def exact_weights(weights: Sequence[Weight]) -> tuple[Fraction, ...]:
    """The weights as exact fractions that add up to one.

    Args:
        weights: Numbers above 0, in any unit: 0.7, "0.7", "1/3", 7. A float means the decimal
            number that it is printed as, so 0.1 is a tenth.

    Raises:
        ConfigError: no number, or not above 0.
    """
    exact = [_exact_weight(weight) for weight in weights]
    return tuple(weight / sum(exact) for weight in exact)


def _exact_weight(weight: Weight) -> Fraction:
    try:
        exact = Fraction(str(weight)).limit_denominator(_MAX_DENOMINATOR)
    except (ValueError, ZeroDivisionError):
        exact = Fraction(0)
    if exact <= 0:
        raise ConfigError("weight", weight, "must be a number above 0, such as 0.3, 3 or 1/3")
    return exact


@dataclass(frozen=True)
class Blend:
    """The slots of every round, by source.

    Args:
        weights: w_i, adding up to one: see :func:`exact_weights`.
        num_lanes: L.

    Raises:
        ConfigError: the turns of the shared slots repeat only after more than 10,000 rounds.
    """

    weights: tuple[Fraction, ...]
    num_lanes: int
    num_fixed: tuple[int, ...] = field(init=False)
    """F_i: slots that are always source i's."""
    period: int = field(init=False)
    """D: rounds after which the turns of the shared slots repeat."""
    _slot_sources: Indices = field(init=False, repr=False)  # (L,); -1: shared
    _slot_lanes: Indices = field(init=False, repr=False)  # (L,): counted per source
    _turns: Indices = field(init=False, repr=False)  # (D, R)
    _turns_before: Indices = field(init=False, repr=False)  # (sources, 2 * D + 1)

    def __post_init__(self) -> None:
        quotas = [weight * self.num_lanes for weight in self.weights]
        num_fixed = tuple(math.floor(quota) for quota in quotas)
        shares = [quota - whole for quota, whole in zip(quotas, num_fixed, strict=True)]
        period = math.lcm(*(share.denominator for share in shares))
        if period > _MAX_PERIOD:
            raise ConfigError(
                "weights",
                [str(weight) for weight in self.weights],
                f"with {self.num_lanes} prompts per generation batch their turns would repeat only "
                f"after {period} batches; at most {_MAX_PERIOD} are possible; near weights that "
                f"work: {' '.join(map(str, _near_weights(self.weights)))}",
            )
        turns = rotation([int(share * period) for share in shares], period)
        slot_sources, slot_lanes = _spread([*num_fixed, turns.shape[1]], self.num_lanes)
        is_turn = turns[:, None, :] == np.arange(len(shares))[:, None]  # (D, sources, R)
        counts = np.tile(is_turn.sum(axis=2).T, 2)
        for name, value in (
            ("num_fixed", num_fixed),
            ("period", period),
            ("_slot_sources", np.where(slot_sources < len(shares), slot_sources, -1)),
            ("_slot_lanes", slot_lanes),
            ("_turns", turns),
            ("_turns_before", np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0)))),
        ):
            object.__setattr__(self, name, value)

    def lanes_of(self, rounds: Indices, slots: range) -> tuple[Indices, Indices]:
        """Source and lane that fill ``slots`` in ``rounds``.

        Args:
            rounds: int64, shape (n,), each at least 0.
            slots: Slots of a generation batch.

        Returns:
            Source and lane, int64, shape (n, len(slots)). Lanes 0 to F_i - 1 of source i are its
            fixed slots'; lane F_i is the one that its turns at shared slots walk along.
        """
        at = np.asarray(slots, dtype=np.int64)
        shape = (rounds.size, at.size)
        source = np.broadcast_to(self._slot_sources[at], shape).copy()
        lane = np.broadcast_to(self._slot_lanes[at], shape).copy()
        shared = np.flatnonzero(self._slot_sources[at] < 0)
        turns = self._turns[(rounds % self.period)[:, None], self._slot_lanes[at[shared]]]
        source[:, shared] = turns
        lane[:, shared] = np.asarray(self.num_fixed)[turns]
        return source, lane

    def num_shared_before(self, source: int, rounds: Indices) -> Indices:
        """Turns that ``source`` has had at shared slots before each of ``rounds``."""
        before = self._turns_before[source]
        counts: Indices = rounds // self.period * before[self.period] + before[rounds % self.period]
        return counts

    def most_shared(self, source: int, num_rounds: int) -> int:
        """The most turns that ``source`` has at shared slots in any ``num_rounds`` in a row."""
        before = self._turns_before[source]
        periods, part = divmod(num_rounds, self.period)
        in_part = before[part : part + self.period] - before[: self.period]
        return int(periods * before[self.period] + in_part.max())

    def num_rounds_of(self, source: int, num_samples: int) -> int:
        """Rounds that ``num_samples`` of a source surely last for, whenever they begin; maybe 0.

        It is floor(num_samples / q_i) where q_i is whole. Where the source takes turns, a run of
        rounds may hold up to two more of them than its length says, and as many samples have to be
        there.
        """
        too_many = math.floor(num_samples / (self.weights[source] * self.num_lanes)) + 1
        enough = 0
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            need = self.num_fixed[source] * middle + self.most_shared(source, middle)
            enough, too_many = (middle, too_many) if need <= num_samples else (enough, middle)
        return enough


def _spread(counts: Sequence[int], num_slots: int) -> tuple[Indices, Indices]:
    """Kind of each slot, and how many of that kind come before it; each kind spread evenly."""
    # Equal parts of the slots look the same: 7000 and 3000 slots are a thousand times 7 and 3.
    repeats = math.gcd(*counts)
    kinds = rotation([count // repeats for count in counts], num_slots // repeats)
    kinds = np.tile(kinds.ravel(), repeats)
    indices = np.empty_like(kinds)
    for kind, count in enumerate(counts):
        indices[kinds == kind] = np.arange(count)
    return kinds, indices


def _near_weights(weights: Sequence[Fraction]) -> list[int]:
    return [max(1, round(weight * _NEAR_TOTAL)) for weight in weights]
