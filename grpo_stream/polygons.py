"""Polygons that name their frame: what is inside, and how much of a box they share.

What is inside is decided by the even-odd rule, as Pillow and SVG's ``evenodd`` fill: a point is in
a polygon if a ray from it crosses the outline an odd number of times. So outlines may be concave,
run either way round, and cross themselves.
"""

import functools
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from grpo_stream.boxes import Box, Frame, Point, Size, iou

MIN_CORNERS = 3


@dataclass(frozen=True, slots=True)
class Polygon:
    """The region within a closed outline, in ``frame``."""

    corners: tuple[tuple[float, float], ...]
    """``(x, y)`` of at least three; the last is joined to the first."""
    frame: Frame = "original"

    @property
    def bounds(self) -> Box:
        """The least box around it."""
        xs, ys = zip(*self.corners, strict=True)
        return Box(min(xs), min(ys), max(xs), max(ys), self.frame)

    @property
    def is_valid(self) -> bool:
        """It has three corners or more, all finite, and an area."""
        return len(self.corners) >= MIN_CORNERS and self.bounds.is_valid and self.area > 0

    @property
    def area(self) -> float:
        """Of what is inside by the even-odd rule."""
        return overlap_area(self, self.bounds)

    @property
    def centre(self) -> Point:
        """The middle of its bounds, which may be outside of a concave polygon."""
        return self.bounds.centre

    def contains(self, point: Point) -> bool:
        """Whether ``point`` is inside; of points on the outline those on the left and top are.

        Raises:
            ValueError: the frames differ.
        """
        if self.frame != point.frame:
            raise ValueError(f"frames differ: {self.frame!r} and {point.frame!r}")
        is_in = False
        x1, y1 = self.corners[-1]
        for x2, y2 in self.corners:
            if (y1 <= point.y) != (y2 <= point.y):
                is_in ^= point.x >= x1 + (point.y - y1) * (x2 - x1) / (y2 - y1)
            x1, y1 = x2, y2
        return is_in

    def clipped(self, size: Size) -> "Polygon":
        """The part inside an image of ``size``, whose outline may run along an edge there and back.

        Source: Sutherland and Hodgman, 1974, for the four sides of a rectangle.
        """
        corners = self.corners
        for axis, limit, sign in ((0, 0, 1), (0, size.width, -1), (1, 0, 1), (1, size.height, -1)):
            kept: list[tuple[float, float]] = []
            for a, b in zip((*corners[-1:], *corners), corners, strict=False):
                before, after = (sign * (corner[axis] - limit) for corner in (a, b))
                if (before < 0) != (after < 0):
                    share = before / (before - after)
                    x, y = (p + share * (q - p) for p, q in zip(a, b, strict=True))
                    kept.append((limit, y) if axis == 0 else (x, limit))
                if after >= 0:
                    kept.append(b)
            corners = tuple(kept)
        return Polygon(corners, self.frame)

    def scaled(self, from_size: Size, to_size: Size, frame: Frame) -> "Polygon":
        """The same region in an image of another size, named as ``frame``."""
        kx, ky = to_size.width / from_size.width, to_size.height / from_size.height
        return Polygon(tuple((x * kx, y * ky) for x, y in self.corners), frame)


Shape: TypeAlias = Point | Box | Polygon


def region_iou(box: Box, region: Box | Polygon) -> float:
    """Intersection over union of a box with a box or polygon of one frame, in [0, 1].

    0 where either has no area.

    Example:
        >>> region_iou(Box(0, 0, 2, 2), Polygon(((0, 0), (2, 0), (0, 2))))
        0.5

    Raises:
        ValueError: the frames differ.
    """
    if isinstance(region, Box):
        return iou(box, region)
    if box.frame != region.frame:
        raise ValueError(f"frames differ: {box.frame!r} and {region.frame!r}")
    if not (box.is_valid and region.is_valid):
        return 0.0
    overlap = overlap_area(region, box)
    return overlap / (box.area + region.area - overlap)


@functools.lru_cache(maxsize=4_096)
def overlap_area(polygon: Polygon, box: Box) -> float:
    """Area of what is in both, exact but for rounding.

    The box is cut into horizontal strips at every corner and wherever two edges cross, or one
    crosses the box's sides. Within a strip all edges are straight and in one order, so the width
    that is inside changes in a straight line, and the strip's area is its height times the width
    at half its height. Work and memory grow with (corners + crossings) x corners.
    """
    corners = np.array(polygon.corners, np.float64)
    ends = np.roll(corners, -1, axis=0)
    with np.errstate(all="ignore"):
        heights = np.concatenate(
            [
                corners[:, 1],
                np.array([box.y1, box.y2]),
                _crossing_heights(corners, ends),
                *(
                    (corners + (x - corners[:, :1]) / (ends - corners)[:, :1] * (ends - corners))[
                        :, 1
                    ]
                    for x in (box.x1, box.x2)
                ),
            ]
        )
        inside = (heights >= box.y1) & (heights <= box.y2)
        levels = np.unique(heights[inside & np.isfinite(heights)])
        middles = (levels[:-1] + levels[1:])[:, None] / 2
        (x1, y1), (x2, y2) = corners.T, ends.T
        xs = x1 + (middles - y1) * (x2 - x1) / (y2 - y1)
        # Edges that a middle line does not meet are put together at infinity, an even number.
        meets = (y1 <= middles) != (y2 <= middles)
        xs = np.sort(np.where(meets, xs, math.inf), axis=1)[:, : len(corners) // 2 * 2]
    xs = np.clip(xs, box.x1, box.x2)
    widths = (xs[:, 1::2] - xs[:, ::2]).sum(axis=1)
    return float((widths * np.diff(levels)).sum())


def _crossing_heights(
    starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Heights where lines through two edges meet, for every pair; more than needed do no harm."""
    ways = ends - starts
    one, other = np.triu_indices(len(starts), k=2)
    across = _cross(ways[one], ways[other])
    shares = _cross(starts[other] - starts[one], ways[other]) / across
    within = (shares > 0) & (shares < 1)
    heights: NDArray[np.float64] = (starts[one, 1] + shares * ways[one, 1])[within]
    return heights


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return product
