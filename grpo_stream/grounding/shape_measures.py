"""How near an answered point or box is to one true place; all in frame ``original``."""

import math
from collections.abc import Callable, Sequence

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.polygons import Polygon, Shape, region_iou
from grpo_stream.targets import bounds_of, centre_of

_UNIT = Size(1, 1)
_HUGE = Size(10**160, 10**160)


def is_hit(point: Point, truth: Shape, reach: float) -> bool:
    """Whether a point is in a true region, or within ``reach`` pixels of a true point."""
    if isinstance(truth, Point):
        return math.hypot(point.x - truth.x, point.y - truth.y) <= reach
    return truth.contains(point)


def giou(box: Box, truth: Box | Polygon) -> float:
    """``iou - (hull - union) / hull`` of two valid regions; the hull is the least box around both.

    Of a polygon the union is that of the areas, as in ``region_iou``.
    """
    bounds = bounds_of(truth)
    hull = Box(
        min(box.x1, bounds.x1),
        min(box.y1, bounds.y1),
        max(box.x2, bounds.x2),
        max(box.y2, bounds.y2),
    )
    if hull.area > 1e300:  # nearly as wide as floats go: the same regions, smaller
        box, hull = (each.scaled(_HUGE, _UNIT, "original") for each in (box, hull))
        truth = truth.scaled(_HUGE, _UNIT, "original")
    share = region_iou(box, truth)
    # Of iou = overlap / union and area + area = union + overlap, the union.
    union = (box.area + truth.area) / (1 + share)
    return share - (1 - union / hull.area)


def nearness(point: Point, truth: Shape, image: Size) -> float:
    """``max(0, 1 - (d / dmax)^2)`` in coordinates divided by the image's sides."""
    width, height = image
    centre = centre_of(truth)
    x, y = centre.x / width, centre.y / height
    away = math.hypot(point.x / width - x, point.y / height - y)
    ratio = away / math.hypot(max(x, 1 - x), max(y, 1 - y))
    return max(0.0, 1 - ratio * ratio)


def hill(point: Point, truth: Box | Polygon) -> float:
    """``exp(-((dx / sx)^2 + (dy / sy)^2) / 2)`` with half of the true sides as sx, sy."""
    bounds = bounds_of(truth)
    centre = bounds.centre
    x = (point.x - centre.x) / (bounds.width / 2)
    y = (point.y - centre.y) / (bounds.height / 2)
    return math.exp(-(x * x + y * y) / 2)


def num_matched(num_answers: int, num_truths: int, fits: Callable[[int, int], bool]) -> int:
    """Most pairs of an answer and a truth that fit, each in one pair at most.

    By augmenting paths (Kuhn, 1955), so no order of the answers or truths costs a pair.

    Args:
        num_answers: Are counted from 0, as are the truths.
        num_truths: See there.
        fits: Whether an answer fits a truth.
    """
    truths = [[t for t in range(num_truths) if fits(a, t)] for a in range(num_answers)]
    holder: dict[int, int] = {}  # truth -> its answer

    def takes_one(answer: int, tried: set[int]) -> bool:
        for truth in truths[answer]:
            if truth not in tried:
                tried.add(truth)
                if truth not in holder or takes_one(holder[truth], tried):
                    holder[truth] = answer
                    return True
        return False

    return sum(takes_one(answer, set()) for answer in range(num_answers))


def f1_score(num_pairs: int, num_answers: int, num_truths: int) -> float:
    """``2 m / (a + t)``: the harmonic mean of precision m / a and recall m / t."""
    return 2 * num_pairs / (num_answers + num_truths)


def best(values: Sequence[float | None]) -> float | None:
    """The largest of those that there are."""
    return max((value for value in values if value is not None), default=None)
