import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.report.stats import wilson_interval


# By hand: next to an end of [0, 1] the interval is z^2 / (n + z^2) wide, with z^2 = 3.8415.
@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(50, 100, 0.4038, 0.5962), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_known_values(successes, total, low, high):
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_holds_the_share_and_stays_in_range(case):
    successes, total = case
    low, high = wilson_interval(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    assert low < high


def test_solves_the_equation_it_comes_from():
    # Each end p satisfies (share - p)^2 = z^2 p (1 - p) / n.
    for end in wilson_interval(13, 40, z=2.0):
        assert (13 / 40 - end) ** 2 == pytest.approx(4 * end * (1 - end) / 40)
    assert math.isclose(sum(wilson_interval(20, 40)), 1)


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_impossible_counts(successes, total):
    with pytest.raises(ValueError, match="needs 0 <= successes <= total"):
        wilson_interval(successes, total)
