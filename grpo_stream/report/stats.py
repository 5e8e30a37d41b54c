"""How sure a measured share is."""

import math

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
