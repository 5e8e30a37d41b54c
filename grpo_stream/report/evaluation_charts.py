"""The charts of an evaluation, as SVG: where answers fall, and how far from the truth."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_stream.boxes import Point
from grpo_stream.report.answer_cards import Answer
from grpo_stream.report.charts import (
    GRID,
    INK,
    PALE,
    Series,
    Svg,
    line,
    line_chart,
    svg,
    text,
)
from grpo_stream.targets import bounds_of, read_target

MAX_DOTS = 2000
"""More are thinned out evenly."""

_SIDE, _LEFT, _TOP, _WORDS_LEFT = 222, 14, 44, 268
_REACH = 4.0  # the plot shows so many half-sides of the true box to each side
_HIT, _MISS, _TRUTH = "var(--right,#145ae6)", "var(--wrong,#d72323)", "var(--truth,#009650)"


def evaluation_charts(results: Mapping[str, Any], answers: Sequence[Answer]) -> list[Svg]:
    """Where the answers fall, their distances, and their overlaps where boxes were answered.

    Args:
        results: What ``results.json`` holds.
        answers: What ``answers.jsonl`` holds.
    """
    charts = []
    offsets = [offset for offset in map(_offset, answers) if offset is not None]
    if offsets:
        charts.append(target_plot("Where the answers fall, seen from the true box", offsets))
    # An answer without a place is at no distance.
    distances = [
        math.inf if a["distance"] is None else a["distance"] for a in answers if a["solution"]
    ]
    reaches = np.linspace(0, 0.5, 101)
    if distances:
        within = np.searchsorted(np.sort(distances), reaches, side="right") / len(distances)
        title = "Answers by distance from the true centre"
        charts.append(_share_chart(title, reaches, within, "at most, as a share of the diagonal"))
    if results["figures"]["acc_50"] is not None:
        ious = [answer["iou"] for answer in answers if answer["iou"] is not None]
        levels = np.linspace(0, 1, 101)
        above = 1 - np.searchsorted(np.sort(ious), levels, side="left") / len(ious)
        title = "Answers by overlap with the true box"
        charts.append(_share_chart(title, levels, above, "IoU of at least"))
    return charts


def target_plot(title: str, offsets: Sequence[tuple[float, float, bool]]) -> Svg:
    """Answers around a true box that is drawn as a square, whatever its shape.

    A cloud beside the square is a bias; dots scattered far beyond it speak of a wrong frame.

    Args:
        title: Said above the plot.
        offsets: For each answer x and y from the true centre, in halves of the true width and
            height (so -1 to 1 is inside), and whether it is a hit; at least one. Farther than 4 is
            drawn at the edge.

    Raises:
        ValueError: no answers.
    """
    if not offsets:
        raise ValueError("no answers: must be at least 1")
    middle_x, middle_y, unit = _LEFT + _SIDE / 2, _TOP + _SIDE / 2, _SIDE / 2 / _REACH
    body = [
        _square(middle_x, middle_y, _SIDE / 2, GRID, 1),
        line(middle_x, _TOP, middle_x, _TOP + _SIDE, GRID),
        line(_LEFT, middle_y, _LEFT + _SIDE, middle_y, GRID),
    ]
    for x, y, is_hit in offsets[:: math.ceil(len(offsets) / MAX_DOTS)]:
        near_x, near_y = (min(_REACH, max(-_REACH, n)) for n in (x, y))
        body.append(
            f"<circle cx='{middle_x + unit * near_x:.1f}' cy='{middle_y + unit * near_y:.1f}' "
            f"r='{3 if (near_x, near_y) == (x, y) else 2}' fill='{_HIT if is_hit else _MISS}' "
            "fill-opacity='.5'/>"
        )
    body.append(_square(middle_x, middle_y, unit, _TRUTH, 2.5))
    said = _words(offsets)
    for row, (words, value, colour) in enumerate(said):
        y = _TOP + 24 + 40 * row
        body.append(text(_WORDS_LEFT, y, value, "start", size=17, colour=colour, bold=True))
        body.append(text(_WORDS_LEFT, y + 16, words, "start", size=12, colour=PALE))
    return svg(title, "; ".join(f"{words}: {value}" for words, value, _ in said), "".join(body))


def _words(offsets: Sequence[tuple[float, float, bool]]) -> list[tuple[str, str, str]]:
    """What the plot says, in words: label, value, colour."""
    total = len(offsets)
    num_hits = sum(is_hit for _, _, is_hit in offsets)
    num_beyond = sum(max(abs(x), abs(y)) > _REACH for x, y, _ in offsets)
    x, y = median(x for x, _, _ in offsets), median(y for _, y, _ in offsets)
    return [
        ("hits: in the true box, which is green", f"{num_hits:,}", _HIT),
        ("misses", f"{total - num_hits:,}", _MISS),
        ("lie beyond the plot, drawn at its edge", f"{num_beyond / total:.0%}", INK),
        (
            "median offset, in box widths and heights",
            ", ".join(f"{round(n / 2, 2) + 0:+.2f}" for n in (x, y)),
            INK,
        ),
    ]


def _square(x: float, y: float, reach: float, colour: str, width: float) -> str:
    return (
        f"<rect x='{x - reach:.1f}' y='{y - reach:.1f}' width='{2 * reach:.1f}' "
        f"height='{2 * reach:.1f}' fill='none' stroke='{colour}' stroke-width='{width}'/>"
    )


def _share_chart(
    title: str, xs: NDArray[np.float64], shares: NDArray[np.float64], x_label: str
) -> Svg:
    series = Series("share", xs.tolist(), shares.tolist())
    y_label = "share of samples"
    return line_chart(title, [series], x_label=x_label, y_label=y_label, y_range=(0, 1))


def _offset(answer: Answer) -> tuple[float, float, bool] | None:
    shapes = read_target(answer["solution"]).shapes
    if answer["point"] is None or answer["is_hit"] is None or len(shapes) != 1:
        return None
    (shape,) = shapes
    if isinstance(shape, Point):
        return None
    box, (x, y) = bounds_of(shape), answer["point"]
    return (
        (2 * x - box.x1 - box.x2) / (box.x2 - box.x1),
        (2 * y - box.y1 - box.y2) / (box.y2 - box.y1),
        bool(answer["is_hit"]),
    )
