"""How values are spread, in memory that does not grow with their number."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS_PER_OCTAVE = 32
_LOWEST, _HIGHEST = -32, 40  # powers of two that the bins span
_MAX_EXACT = 4_096
_NUM_BINS = (_HIGHEST - _LOWEST) * _BINS_PER_OCTAVE


class Spread:
    """Counts values from 0: each for itself while at most 4,096 are different, then in bins only.

    The bins are 2,304, of them 32 to each doubling (18 kB). Count, smallest, largest and mean are
    exact; quantiles are exact while values are counted for themselves, then right to 1.1 % of
    their value. What is below 2^-32, 0 among it, is counted in the lowest bin.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.low = float("inf")
        self.high = float("-inf")
        self._bins = np.zeros(_NUM_BINS, np.int64)
        self._exact: dict[float, int] | None = {}

    def add(self, values: Sequence[float] | NDArray[Any]) -> None:
        """Counts ``values``, finite numbers from 0."""
        array = np.asarray(values, np.float64)
        if array.size == 0:
            return
        self.count += array.size
        self.total += float(array.sum())
        self.low = min(self.low, float(array.min()))
        self.high = max(self.high, float(array.max()))
        distinct, counts = np.unique(array, return_counts=True)
        octaves = np.log2(np.maximum(distinct, 2.0**_LOWEST)) - _LOWEST
        places = np.clip((octaves * _BINS_PER_OCTAVE).astype(np.int64), 0, _NUM_BINS - 1)
        np.add.at(self._bins, places, counts)
        if self._exact is not None:
            for value, count in zip(distinct.tolist(), counts.tolist(), strict=True):
                self._exact[value] = self._exact.get(value, 0) + count
            if len(self._exact) > _MAX_EXACT:
                self._exact = None

    def merge(self, other: "Spread") -> None:
        """Counts what ``other`` has counted."""
        self.count += other.count
        self.total += other.total
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        bins, exact = other._bins, other._exact  # noqa: SLF001 - of the same class
        self._bins += bins
        if self._exact is None or exact is None:
            self._exact = None
            return
        for value, count in exact.items():
            self._exact[value] = self._exact.get(value, 0) + count
        if len(self._exact) > _MAX_EXACT:
            self._exact = None

    def to_values(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        filled = np.flatnonzero(self._bins)
        return {
            "count": self.count,
            "total": self.total,
            "ends": [self.low, self.high] if self.count else [],
            "bins": [filled.tolist(), self._bins[filled].tolist()],
            "exact": None if self._exact is None else list(self._exact.items()),
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Spread":
        """What :meth:`to_values` was given."""
        spread = cls()
        spread.count, spread.total = values["count"], values["total"]
        if values["ends"]:
            spread.low, spread.high = values["ends"]
        places, counts = values["bins"]
        spread._bins[places] = counts
        exact = values["exact"]
        spread._exact = None if exact is None else dict(exact)
        return spread

    @property
    def mean(self) -> float:
        """Of all values; NaN when there are none."""
        return self.total / self.count if self.count else float("nan")

    def quantile(self, share: float) -> float:
        """The smallest value that at least ``share`` of the values do not exceed; NaN for none."""
        if not self.count:
            return float("nan")
        if share <= 0 or share >= 1:
            return self.low if share <= 0 else self.high
        wanted = share * self.count
        if self._exact is not None:
            values = sorted(self._exact)
            sums = np.cumsum([self._exact[value] for value in values])
            return values[int(np.searchsorted(sums, wanted))]
        place = int(np.searchsorted(np.cumsum(self._bins), wanted))
        middle = float(2.0 ** ((place + 0.5) / _BINS_PER_OCTAVE + _LOWEST))
        return min(max(middle, self.low), self.high)

    def bars(self, max_bars: int) -> tuple[list[int], float, float]:
        """Counts in equal steps of the logarithm from the smallest to the largest value.

        Returns:
            At most ``max_bars`` counts, and the values where the first starts and the last ends;
            ``([], 0, 0)`` when there are no values.
        """
        filled = np.flatnonzero(self._bins)
        if filled.size == 0:
            return [], 0.0, 0.0
        first, last = int(filled[0]), int(filled[-1]) + 1
        width = -(-(last - first) // max_bars)
        counts = np.add.reduceat(self._bins[first:last], np.arange(0, last - first, width))
        ends = first, first + width * len(counts)
        start, end = (2.0 ** (place / _BINS_PER_OCTAVE + _LOWEST) for place in ends)
        return [int(count) for count in counts], start, end

    def to_dict(self) -> dict[str, float | None]:
        """Count, smallest, 5 %, median, 95 %, largest and mean."""
        names = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
        values = {name: self.quantile(share) for name, share in names.items()} | {"mean": self.mean}
        found = {name: value if self.count else None for name, value in values.items()}
        return {"count": self.count, **found}


class BoundedCounter:
    """Counts words, the first ``max_words`` different ones each for itself, the rest together."""

    def __init__(self, max_words: int = 4096) -> None:
        self.counts: Counter[str] = Counter()
        self.num_others = 0
        self._max_words = max_words

    def add(self, word: str, count: int = 1) -> None:
        """Counts ``word``."""
        if word in self.counts or len(self.counts) < self._max_words:
            self.counts[word] += count
        else:
            self.num_others += count

    def merge(self, other: "BoundedCounter") -> None:
        """Counts what ``other`` has counted."""
        for word, count in other.counts.items():
            self.add(word, count)
        self.num_others += other.num_others
