"""How each reading fits boxes and points: inside their images, the right way round, with an area.

A reading is a box format and a unit. Nothing here decides; ``readings`` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from grpo_stream.records.evidence import Looked
from grpo_stream.records.formats.rules import BoxFormat, Coords

Numbers = NDArray[np.float64]

_SLACK_SHARE = 0.01  # of a side: boxes of real sets reach a little over the edge


class Reading(NamedTuple):
    """How the numbers of a form are read."""

    box_format: BoxFormat
    coords: Coords

    @property
    def name(self) -> str:
        """As ``--accept-reading`` takes it."""
        return f"{self.box_format}-{self.coords}"


@dataclass(frozen=True)
class Fit:
    """How one reading fits."""

    reading: Reading
    is_fitting: NDArray[np.bool_]
    """For each box and point."""
    corners: Numbers
    """For each, ``x1, y1, x2, y2`` in pixels; a point twice."""
    num_reversed_only: int
    """Boxes that only fit with their corners in another order."""
    log_places: Numbers
    """For each, the logarithms of how many places the reading offers it, along x and along y."""
    reach: tuple[float, float]
    """How far right and down they go, over the sides."""

    @property
    def log_area(self) -> float:
        """Sum of ``log_places`` over what fits."""
        return float(self.log_places[self.is_fitting].sum())

    @property
    def num_misfits(self) -> int:
        """Boxes and points that are outside, are reversed or empty, or are no such numbers."""
        return int((~self.is_fitting).sum())

    @property
    def num_fitting(self) -> int:
        """The others."""
        return int(self.is_fitting.sum())

    def differs_from(self, other: "Fit") -> bool:
        """Whether this one gives a box another place, or fits one that the other does not."""
        if (self.is_fitting & ~other.is_fitting).any():
            return True
        both = self.is_fitting & other.is_fitting
        if not both.any():
            return True
        gap = np.abs(self.corners[both] - other.corners[both]).max(axis=1)
        return bool((gap > 1.0).any())


@dataclass(frozen=True)
class Places:
    """The boxes and points that readings are held against, as arrays."""

    numbers: Numbers
    """Four for each; a point's twice, a polygon's bounds."""
    sides: Numbers
    """Of its image: width, height, width, height."""
    is_point: NDArray[np.bool_]
    is_unit: NDArray[np.bool_]
    """Whether all of its numbers are in 0-1."""

    @classmethod
    def of(cls, looked: Sequence[Looked]) -> "Places":
        """Those that were looked at."""
        sizes = np.array([item.size for item in looked], dtype=np.float64).reshape(-1, 2)
        rows = [_four(item.numbers) for item in looked]
        return cls(
            np.array(rows, dtype=np.float64).reshape(-1, 4),
            np.concatenate([sizes, sizes], axis=1),
            np.array([len(item.numbers) == 2 for item in looked], dtype=bool),
            np.array([_looks_like_unit(item.numbers) for item in looked], dtype=bool),
        )


def fit(reading: Reading, places: Places) -> Fit:
    """How a reading fits."""
    numbers, sides, is_point = places.numbers, places.sides, places.is_point
    scale = {
        "pixels": sides,
        "unit": np.ones_like(sides),
        "per_mille": np.full_like(sides, 1000.0),
    }[reading.coords]
    raw = _corners(numbers, reading.box_format, is_point)
    is_fitting = np.ones(len(numbers), dtype=bool)
    if reading.coords != "pixels":
        is_fitting &= ((numbers >= 0) & (numbers <= scale)).all(axis=1)
    if reading.coords != "unit":
        is_fitting &= ~places.is_unit
    corners = raw / scale * sides
    slack = 1.0 + _SLACK_SHARE * sides
    is_inside = ((corners >= -slack) & (corners <= sides + slack)).all(axis=1)
    has_area = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    is_nonzero = (corners[:, 2] != corners[:, 0]) & (corners[:, 3] != corners[:, 1])
    if reading.coords != "pixels":  # smaller than a pixel: nobody has drawn that
        is_fitting &= is_point | (np.abs(corners[:, 2:] - corners[:, :2]).max(axis=1) >= 1.0)
    could_be = is_fitting & is_inside & ~is_point & is_nonzero & ~has_area
    is_fitting &= is_inside & (has_area | is_point)
    reach = (0.0, 0.0)
    if is_fitting.any():
        shares = (corners / sides)[is_fitting]
        reach = (float(shares[:, 2].max()), float(shares[:, 3].max()))
    return Fit(
        reading,
        is_fitting,
        corners,
        int(could_be.sum()) if reading.box_format == "xyxy" else 0,
        np.log(scale[:, :2]),
        reach,
    )


def _four(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if len(numbers) == 2:
        return (*numbers, *numbers)
    if len(numbers) > 4:
        xs, ys = numbers[::2], numbers[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    return numbers


def _corners(numbers: Numbers, box_format: BoxFormat, is_point: NDArray[np.bool_]) -> Numbers:
    a, b, c, d = numbers.T
    if box_format == "yxyx":
        return np.stack([b, a, d, c], axis=1)
    if box_format == "xywh":
        found = np.stack([a, b, a + c, b + d], axis=1)
    elif box_format == "cxcywh":
        found = np.stack([a - c / 2, b - d / 2, a + c / 2, b + d / 2], axis=1)
    elif box_format == "corners":
        found = np.stack(
            [np.minimum(a, c), np.minimum(b, d), np.maximum(a, c), np.maximum(b, d)], axis=1
        )
    else:
        return numbers
    return np.where(is_point[:, None], numbers, found)


def _looks_like_unit(numbers: tuple[float, ...]) -> bool:
    if not 0 <= min(numbers) <= max(numbers) <= 1:
        return False
    return len(numbers) > 2 or not all(float(number).is_integer() for number in numbers)
