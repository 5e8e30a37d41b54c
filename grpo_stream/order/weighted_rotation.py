"""Taking turns in given shares, so that nobody is ever a whole turn ahead or behind.

The problem is known from real-time systems as Pfair scheduling (Baruah, Cohen, Plaxton and
Varvel, "Proportionate progress", 1996): R processors, tasks of weights below one that add up to R.
The k-th turn (from 0) of a task of weight f has to be in the rounds from floor(k/f) to
ceil((k+1)/f) - 1; that is the same as: after s rounds, for every s, it has had floor(f*s) or
ceil(f*s) turns.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grpo_stream.order.permutation import Indices


class _Turn(NamedTuple):
    """The next turn of a member; the smallest comes first, after ``release``."""

    deadline: int  # the first round that is too late
    is_apart: bool  # the following turn's window does not begin before this one's end
    minus_group_deadline: int
    member: int
    release: int


def rotation(quotas: Sequence[int], period: int) -> Indices:
    """Who has a turn in each round of a period, after which everything repeats.

    Member i has ``quotas[i]`` turns in ``period`` rounds; R = sum(quotas) / period members have
    one in each round, and no member has two. After any number s of rounds, member i has had
    floor(s * quotas[i] / period) turns, or one more unless that is exact.

    The turns are given by the rules of PD2, which meets every deadline whenever the quotas add up
    (Anderson and Srinivasan, "Mixed Pfair/ERfair scheduling", 2004): the earliest deadline first,
    then the turn whose window overlaps the next one's, then the later group deadline.

    Args:
        quotas: Whole numbers from 0 to ``period`` whose sum is a multiple of it.
        period: Rounds.

    Returns:
        int64, shape (period, R), members in ascending order within a round.
    """
    num_turns = sum(quotas) // period
    next_turns = [_turn(i, 0, quota, period) for i, quota in enumerate(quotas) if quota]
    done = [0] * len(quotas)
    rounds = np.empty((period, num_turns), dtype=np.int64)
    for number in range(period):
        due = sorted(turn for turn in next_turns if turn.release <= number)[:num_turns]
        members = sorted(turn.member for turn in due)
        rounds[number] = members
        for member in members:
            done[member] += 1
        next_turns = [
            _turn(turn.member, done[turn.member], quotas[turn.member], period)
            if turn.member in members
            else turn
            for turn in next_turns
        ]
    return rounds


def _turn(member: int, index: int, quota: int, period: int) -> _Turn:
    deadline = _ceil((index + 1) * period, quota)
    is_apart = (index + 1) * period % quota == 0
    # Only for weights of a half and more, whose turns can be forced in a row: where the row ends.
    rest = period - quota
    group = 0
    if 0 < rest <= quota:
        group = _ceil(_ceil(deadline * rest, period) * period, rest)
    return _Turn(deadline, is_apart, -group, member, index * period // quota)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
