from collections import Counter
from itertools import cycle, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.pipeline.look_ahead import LookAhead
from grpo_stream.stream.world import World

AHEAD = 2**20
SOME = settings(deadline=None, max_examples=60)


def make_rule(rank=0, world_size=1, ahead=AHEAD, prefetch=2):
    config = StreamConfig(num_lanes=world_size, fetch_ahead_bytes=ahead, prefetch_batches=prefetch)
    return LookAhead(config, World(rank, world_size))


def walk(rule, sizes, num_calls):
    """Sizes of the batches that are held before and after each call; ``sizes`` come in turns.

    The first batch is taken before its call looks further, any other one after it.
    """
    coming = cycle(sizes)
    held = [next(coming) for _ in range(rule.config.prefetch_batches)]
    num_bytes = sum(held)
    for call in range(num_calls):
        before = len(held)
        limit = rule.limit(call, before, num_bytes)
        while rule.has_room(limit, len(held), num_bytes):
            held.append(next(coming))
            num_bytes += held[-1]
        yield held[:before], list(held)
        if call:
            num_bytes -= held.pop(0)


WORLDS = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n)))
SIZES = st.lists(st.integers(0, AHEAD // 20), min_size=1, max_size=9)


@SOME
@given(world=WORLDS, sizes=SIZES, ahead=st.integers(1, AHEAD), prefetch=st.integers(1, 4))
def test_bounds_hold_and_what_is_near_is_always_there(world, sizes, ahead, prefetch):
    for before, after in walk(make_rule(world[0], world[1], ahead, prefetch), sizes, 80):
        assert prefetch < len(after) <= 1024
        if len(after) > max(len(before), prefetch + 1):
            assert sum(after[:-1]) < ahead


@SOME
@given(sizes=SIZES, ahead=st.integers(1, AHEAD))
def test_a_rank_alone_refills_at_the_half_from_the_start(sizes, ahead):
    for before, after in walk(make_rule(ahead=ahead), sizes, 80):
        if sum(before) > ahead // 2:
            assert len(after) == max(len(before), 3)
        else:
            assert sum(after) >= ahead or len(after) == 1024


@SOME
@given(
    world=WORLDS.filter(lambda world: world[1] > 1), size=st.integers(AHEAD // 900, AHEAD // 200)
)
def test_the_first_fill_comes_in_equal_pieces(world, size):
    rank, world_size = world
    rule, num_pieces = make_rule(rank, world_size), min(world_size, 64)
    level = rule.limit(num_pieces - 1, 1, size)
    assert AHEAD // 2 < level <= AHEAD
    assert level == AHEAD or rank > 0
    for call, (_, after) in enumerate(walk(rule, [size], num_pieces)):
        wanted = max(3 * size, level * (call + 1) // num_pieces)
        assert wanted <= sum(after) < wanted + size


@pytest.mark.parametrize("world_size", [2, 3, 64, 200])
@pytest.mark.parametrize("size", [AHEAD // 1400, AHEAD // 900, AHEAD // 200, AHEAD // 50])
def test_refills_of_ranks_are_spread(world_size, size):
    refills: Counter[int] = Counter()
    periods = []
    for rank in range(world_size):
        walked = walk(make_rule(rank, world_size), [size], 1000)
        calls = [call for call, (old, new) in enumerate(walked) if len(new) > len(old) + 1]
        calls = [call for call in calls if call >= min(world_size, 64)]
        refills.update(calls)
        periods += [later - call for call, later in pairwise(calls)]
    assert max(periods) - min(periods) <= 1
    evenly = world_size / min(periods)
    assert max(refills.values()) <= 2 + 1.2 * evenly
