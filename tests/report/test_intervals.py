import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.report import intervals
from grpo_stream.report.intervals import bootstrap_intervals, wilson_interval


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


class TestBootstrap:
    def test_agrees_with_drawing_images_one_by_one(self):
        rng = np.random.default_rng(5)
        clusters = rng.integers(0, 12, 60)
        values = rng.random((60, 2))
        values[rng.random((60, 2)) < 0.2] = np.nan
        found = bootstrap_intervals(values, clusters, num_resamples=4000, seed=1)
        slow = []
        for _ in range(4000):
            drawn = rng.choice(np.unique(clusters), 12)
            rows = np.concatenate([np.flatnonzero(clusters == cluster) for cluster in drawn])
            slow.append(np.nanmean(values[rows], axis=0))
        assert found == pytest.approx(np.quantile(slow, (0.025, 0.975), axis=0).T, abs=0.012)

    def test_covers_the_truth_as_often_as_it_says(self):
        rng = np.random.default_rng(0)
        covered = 0
        for trial in range(200):
            images = np.repeat(np.arange(60), 3)
            values = (rng.random(60)[images] < rng.random(180)).astype(float)  # alike in an image
            (ends,) = bootstrap_intervals(values[:, None], images, num_resamples=300, seed=trial)
            covered += ends[0] <= 0.5 <= ends[1]
        assert 0.9 <= covered / 200 <= 0.99

    def test_samples_of_one_image_count_once(self):
        once = (np.arange(20)[:, None] % 2).astype(np.float64)
        again = once[np.arange(80) // 4]
        alone = bootstrap_intervals(once, np.arange(20))
        fourfold = bootstrap_intervals(again, np.arange(80) // 4)
        as_if_independent = bootstrap_intervals(again, np.arange(80))
        assert fourfold == pytest.approx(alone)
        assert np.ptp(as_if_independent) < 0.6 * np.ptp(alone)

    def test_the_same_seed_gives_the_same_ends_and_chunks_do_not_matter(self, monkeypatch):
        values, clusters = np.arange(50.0)[:, None] % 7, np.arange(50) // 2
        first = bootstrap_intervals(values, clusters, num_resamples=500, seed=3)
        monkeypatch.setattr(intervals, "_MAX_DRAWS_AT_ONCE", 100)
        again = bootstrap_intervals(values, clusters, num_resamples=500, seed=3)
        assert first == pytest.approx(again)
        assert not np.array_equal(first, bootstrap_intervals(values, clusters, seed=4))

    def test_a_column_that_applies_nowhere_or_hardly_anywhere(self):
        values = np.full((30, 2), np.nan)
        values[0, 1] = 0.5
        found = bootstrap_intervals(values, np.arange(30), num_resamples=200)
        assert np.isnan(found[0]).all()
        assert found[1].tolist() == [0.5, 0.5]

    def test_a_hundred_thousand_samples_take_seconds_and_little_memory(self):
        values = np.random.default_rng(0).random((100_000, 6))
        found = bootstrap_intervals(values, np.arange(100_000), num_resamples=50)
        assert found == pytest.approx(np.full((6, 2), 0.5), abs=0.01)
