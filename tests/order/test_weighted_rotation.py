import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_stream.order.weighted_rotation import rotation


@st.composite
def rotations(draw):
    period = draw(st.integers(1, 60))
    quotas = draw(st.lists(st.integers(0, period), min_size=1, max_size=8))
    return [*quotas, -sum(quotas) % period], period


class TestRotation:
    @settings(max_examples=300)
    @given(rotations())
    def test_nobody_is_a_whole_turn_ahead_or_behind(self, case):
        quotas, period = case
        rounds = rotation(quotas, period)
        assert rounds.shape == (period, sum(quotas) // period)
        for member, quota in enumerate(quotas):
            turns = (rounds == member).sum(axis=1)
            assert turns.max(initial=0) <= 1
            exact = np.arange(1, period + 1) * quota
            assert np.abs(np.cumsum(turns) * period - exact).max() < period
            assert turns.sum() == quota

    @pytest.mark.parametrize(
        ("quotas", "expected"),
        [
            ([1, 1], [[0], [1]]),
            ([4, 1], [[0], [0], [0], [0], [1]]),
            ([2, 2, 2], [[0, 1], [0, 2], [1, 2]]),
            ([3, 0, 3], [[0, 2], [0, 2], [0, 2]]),
            ([0], [[], [], []]),
        ],
    )
    def test_examples(self, quotas, expected):
        period = len(expected)
        assert rotation(quotas, period).tolist() == expected
