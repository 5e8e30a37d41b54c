import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_stream.errors import ConfigError
from grpo_stream.order.blend import Blend, exact_weights

WEIGHTS = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def make_blend(weights, num_lanes):
    return Blend(exact_weights(weights), num_lanes)


def counts_of(blend, num_rounds, slots=None):
    """Prompts of each source in each round: shape (num_rounds, sources)."""
    slots = range(blend.num_lanes) if slots is None else slots
    source, _ = blend.lanes_of(np.arange(num_rounds), slots)
    return np.stack([(source == i).sum(axis=1) for i in range(len(blend.weights))], axis=1)


class TestWeights:
    @pytest.mark.parametrize(
        ("weights", "expected"),
        [
            (["0.7", "0.3"], ["7/10", "3/10"]),
            ([0.1, 0.2], ["1/3", "2/3"]),
            (["1/3", "2/3"], ["1/3", "2/3"]),
            ([7, 3], ["7/10", "3/10"]),
            (["1e-3", "0.999"], ["1/1000", "999/1000"]),
            ([5.0], ["1"]),
        ],
    )
    def test_exact(self, weights, expected):
        assert [str(weight) for weight in exact_weights(weights)] == expected

    @pytest.mark.parametrize("weight", [0, -1, "x", "", "1/0", float("nan"), float("inf"), "1e-30"])
    def test_refuses(self, weight):
        with pytest.raises(ConfigError, match=r"number above 0, such as 0\.3") as info:
            exact_weights([1, weight])
        assert info.value.field == "weight"


class TestShares:
    @settings(max_examples=150)
    @given(WEIGHTS, st.integers(1, 24))
    def test_every_round_and_every_prefix_is_rounded_from_the_exact_share(self, weights, num_lanes):
        blend = make_blend(weights, num_lanes)
        num_rounds = 2 * blend.period + 3
        counts = counts_of(blend, num_rounds)
        assert (counts.sum(axis=1) == num_lanes).all()
        for i, weight in enumerate(blend.weights):
            owed = weight * num_lanes
            assert set(counts[:, i].tolist()) <= {math.floor(owed), math.ceil(owed)}
            for rounds, count in enumerate(np.cumsum(counts[:, i]).tolist(), start=1):
                assert abs(count - owed * rounds) < 1
            assert counts[: blend.period, i].sum() == owed * blend.period

    @given(WEIGHTS, st.integers(1, 24), st.integers(0, 10**12))
    def test_counts_without_replay(self, weights, num_lanes, far):
        blend = make_blend(weights, num_lanes)
        rounds = np.arange(2 * blend.period + 1)
        counts = counts_of(blend, rounds.size)
        for i, weight in enumerate(blend.weights):
            shared = counts[:, i] - blend.num_fixed[i]
            before = np.concatenate([[0], np.cumsum(shared)[:-1]])
            assert blend.num_shared_before(i, rounds).tolist() == before.tolist()
            exact = (weight * num_lanes - blend.num_fixed[i]) * far
            assert abs(int(blend.num_shared_before(i, np.array([far]))[0]) - exact) < 1

    @given(WEIGHTS, st.integers(1, 24))
    def test_lanes_of_a_round_are_all_different(self, weights, num_lanes):
        blend = make_blend(weights, num_lanes)
        source, lane = blend.lanes_of(np.arange(min(blend.period, 20)), range(num_lanes))
        for row in zip(source.tolist(), lane.tolist(), strict=True):
            assert len(set(zip(*row, strict=True))) == num_lanes
        for i, num_fixed in enumerate(blend.num_fixed):
            assert lane[source == i].max(initial=0) <= num_fixed

    @given(WEIGHTS, st.integers(1, 24), st.data())
    def test_a_rank_sees_what_all_ranks_together_see(self, weights, num_lanes, data):
        blend = make_blend(weights, num_lanes)
        start = data.draw(st.integers(0, num_lanes - 1))
        rounds = np.array([0, 3, 10**9 + 1])
        whole = blend.lanes_of(rounds, range(num_lanes))
        part = blend.lanes_of(rounds, range(start, num_lanes))
        assert [p.tolist() for p in part] == [w[:, start:].tolist() for w in whole]

    def test_an_example(self):
        source, lane = make_blend(["0.7", "0.3"], 4).lanes_of(np.arange(5), range(4))
        assert source.tolist() == [[0, 1, 0, 0]] * 4 + [[0, 1, 0, 1]]
        assert lane.tolist() == [[0, 0, 1, 2]] * 4 + [[0, 0, 1, 1]]

    @given(WEIGHTS, st.integers(1, 60), st.data())
    def test_each_run_of_slots_has_its_share(self, weights, num_lanes, data):
        blend = make_blend(weights, num_lanes)
        start = data.draw(st.integers(0, num_lanes - 1))
        stop = data.draw(st.integers(start + 1, num_lanes))
        here = blend._slot_sources[start:stop]
        for i, num_fixed in enumerate(blend.num_fixed):
            assert abs((here == i).sum() - Fraction(num_fixed * len(here), num_lanes)) < 2

    def test_each_rank_has_its_share_where_it_comes_out_even(self):
        blend = make_blend([7, 3], 80)
        for rank in range(8):
            counts = counts_of(blend, 3, range(rank * 10, rank * 10 + 10))
            assert counts.tolist() == [[7, 3]] * 3


class TestPeriod:
    def test_too_long_names_weights_that_work(self):
        with pytest.raises(ConfigError, match=r"only after \d+ batches; at most 10000") as info:
            make_blend(["0.123457", "0.876543"], 7)
        near = info.value.expected.split("work: ")[1].split()
        assert near == ["123", "877"]
        assert make_blend(near, 7).period <= 1000

    def test_the_lanes_may_shorten_it(self):
        assert make_blend(["0.7", "0.3"], 10).period == 1
        assert make_blend(["0.7", "0.3"], 5).period == 2
        assert make_blend(["0.7", "0.3"], 3).period == 10

    def test_a_long_one_is_quickly_built_and_light(self):
        blend = make_blend(["0.5001", "0.2999", "0.2"], 16_383)
        assert blend.period == 10_000
        assert blend._turns_before.nbytes + blend._turns.nbytes < 1_000_000


class TestLengthOfAnEpoch:
    @settings(max_examples=150)
    @given(WEIGHTS, st.integers(1, 12), st.integers(0, 300))
    def test_as_many_rounds_as_surely_fit(self, weights, num_lanes, num_samples):
        blend = make_blend(weights, num_lanes)
        for i, weight in enumerate(blend.weights):
            num_rounds = blend.num_rounds_of(i, num_samples)
            owed = weight * num_lanes
            counts = counts_of(blend, 2 * blend.period + num_rounds + 1)[:, i]
            sums = np.concatenate([[0], np.cumsum(counts)])
            starts = np.arange(blend.period)
            assert (sums[starts + num_rounds] - sums[starts]).max() <= num_samples
            assert (sums[starts + num_rounds + 1] - sums[starts]).max() > num_samples
            assert num_rounds <= num_samples / owed
            assert (num_rounds + 1) * owed > num_samples - 2
            if owed.denominator == 1:
                assert num_rounds == num_samples // owed
