import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_builder.datasets.streaming_quantiles import BoundedCounter, Spread


def spread_of(values, batch=100):
    spread = Spread()
    for start in range(0, len(values), batch):
        spread.add(values[start : start + batch])
    return spread


def exact(values, share):
    return float(np.quantile(values, share, method="inverted_cdf"))


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=300),
    st.sampled_from([0.05, 0.5, 0.95]),
)
def test_quantiles_of_few_different_values_are_exact(values, share):
    assert spread_of(values).quantile(share) == exact(values, share)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_quantiles_of_many_different_values_are_right_to_a_percent(share):
    values = np.random.default_rng(0).lognormal(3, 2, 20_000)
    spread = spread_of(values, 999)
    assert spread._exact is None
    assert spread.quantile(share) == pytest.approx(exact(values, share), rel=0.012)
    assert spread.quantile(0) == values.min()
    assert spread.quantile(1) == values.max()
    assert spread.mean == pytest.approx(values.mean())
    assert spread.count == 20_000


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=200), st.integers(1, 60))
def test_bars_count_every_value_once(values, max_bars):
    spread = spread_of(values)
    counts, start, end = spread.bars(max_bars)
    assert 1 <= len(counts) <= max_bars
    assert sum(counts) == len(values)
    assert start <= min(values) * 1.0001
    assert end >= max(values) * 0.9999


def test_nothing_has_no_spread():
    spread = Spread()
    spread.add([])
    assert spread.bars(9) == ([], 0.0, 0.0)
    assert math.isnan(spread.mean)
    assert math.isnan(spread.quantile(0.5))
    assert spread.to_dict() == {
        "count": 0,
        "min": None,
        "p5": None,
        "median": None,
        "p95": None,
        "max": None,
        "mean": None,
    }


def test_zero_is_a_value():
    assert spread_of([0, 0, 4]).to_dict()["median"] == 0


def test_a_bounded_counter_stops_naming_but_not_counting():
    counter = BoundedCounter(2)
    for word in "abcabca":
        counter.add(word)
    counter.add("d", 5)
    assert counter.counts == {"a": 3, "b": 2}
    assert counter.num_others == 7
