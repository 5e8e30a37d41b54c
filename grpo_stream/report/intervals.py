"""How sure a measured share or mean is."""

import math

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""


def wilson_interval(successes: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Lower and upper end of the Wilson score interval of ``successes / total``, in [0, 1].

    Formula: ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``. Unlike the textbook
    ``p +- z sqrt(p(1-p)/n)`` it stays inside [0, 1] and has a width at 0 and at 1. Source: E. B.
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Example:
        >>> low, high = wilson_interval(50, 100)
        >>> round(low, 3), round(high, 3)
        (0.404, 0.596)

    Raises:
        ValueError: ``total`` is below 1, or ``successes`` is not within [0, total].
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} of {total}: needs 0 <= successes <= total and total >= 1")
    share = successes / total
    width = z * z / total
    middle = share + width / 2
    spread = z * math.sqrt(share * (1 - share) / total + width / total / 4)
    low, high = (middle - spread) / (1 + width), (middle + spread) / (1 + width)
    # At 0 and at total one end is exact; rounding would leave it a hair outside.
    return (0.0 if successes == 0 else low), (1.0 if successes == total else high)


def bootstrap_intervals(
    values: NDArray[np.float64],
    clusters: NDArray[np.int64],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """95 % percentile intervals of the columns' means, by resampling whole clusters.

    Samples of one image succeed and fail together, so images are drawn with replacement, each with
    all of its samples, as many as there are; a mean is the sum over all drawn samples divided by
    their number. Columns are resampled together. Source: the cluster bootstrap in A. C. Davison
    and D. V. Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.

    Args:
        values: Shape (samples, columns); NaN where a column does not apply to a sample.
        clusters: Shape (samples,): equal for samples of one cluster.
        num_resamples: The more, the less the ends depend on ``seed``.
        seed: Of the resamples.

    Returns:
        Shape (columns, 2): lower and upper ends; NaN where a column applies to no sample.
    """
    _, places = np.unique(clusters, return_inverse=True)
    num_clusters = int(places.max()) + 1
    is_known = ~np.isnan(values)
    per_cluster = np.zeros((num_clusters, 2 * values.shape[1]))
    np.add.at(per_cluster, places, np.hstack([np.where(is_known, values, 0.0), is_known]))
    rng = np.random.default_rng(seed)
    rows_at_once = max(1, _MAX_DRAWS_AT_ONCE // num_clusters)
    means = []
    for start in range(0, num_resamples, rows_at_once):
        num_rows = min(rows_at_once, num_resamples - start)
        drawn = rng.integers(0, num_clusters, (num_rows, num_clusters))
        drawn += num_clusters * np.arange(num_rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=num_rows * num_clusters)
        weights = weights.reshape(num_rows, num_clusters)
        sums, counts = np.hsplit(weights.astype(np.float64) @ per_cluster, 2)
        means.append(np.where(counts > 0, sums, np.nan) / np.where(counts > 0, counts, 1))
    every = np.concatenate(means)
    ends = np.full((values.shape[1], 2), np.nan)
    applies = is_known.any(axis=0)
    ends[applies] = np.nanquantile(every[:, applies], (0.025, 0.975), axis=0).T
    return ends


_MAX_DRAWS_AT_ONCE = 2**22
