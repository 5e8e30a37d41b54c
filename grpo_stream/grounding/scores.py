"""What one answer is worth: the numbers that an evaluation keeps of it.

Parser, frames and comparisons are those of the rewards (:class:`~.cases.Case`), so a policy is
measured by what it was trained on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo_stream.boxes import Box, Frame, Point, Size
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.answers import REASONS, ParseFailure
from grpo_stream.grounding.cases import Case

FAILURES: tuple[str, ...] = (*REASONS, "invalid_box")
"""Why an answer gives no place: the parser's reasons, or four numbers that are no box."""

SIZES: tuple[tuple[str, float], ...] = (
    ("tiny", 1e-4),
    ("small", 1e-3),
    ("medium", 1e-2),
    ("large", 1e-1),
    ("huge", math.inf),
)
"""Name of a target's size, and the share of the image's area that it stays below."""
POINT_SIZE = "point"
"""The size of a target that is a point."""


@dataclass(frozen=True)
class ScoredAnswer:
    """A sample, what was answered, and how near that is. Lengths are pixels of ``original``."""

    key: str
    prompt: str
    """The instruction."""
    text: str
    """What was answered."""
    solution: tuple[float, ...]
    """The truth: ``(x1, y1, x2, y2)``, ends exclusive, or ``(x, y)``."""
    scales: Size
    """Width and height of the original image."""
    image: str
    """Equal for samples of the same image."""
    failure: str | None
    """Why the answer gives no place, one of :data:`FAILURES`; None where it does."""
    point: tuple[float, float] | None
    """The answered point, or the answered box's centre; None exactly where ``failure`` is not."""
    box: tuple[float, ...] | None
    """The answered box ``(x1, y1, x2, y2)``; None for points and failures."""
    is_hit: bool | None
    """The point is in the true box, or near enough to the true point."""
    iou: float | None
    """Of answered and true box; 0 without an answered box."""
    distance: float | None
    """From ``point`` to the truth (its centre) as a share of the image's diagonal, at most 1; None
    without a point."""
    is_outside: bool
    """The point is outside of the image."""
    size: str
    """Of the target: a name of :data:`SIZES`, or :data:`POINT_SIZE`."""
    fields: dict[str, Any]
    """The record's own fields that results are told apart by."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"scales": list(self.scales)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "ScoredAnswer":
        """Undoes :meth:`to_dict`, also after a journey through JSON.

        Raises:
            TypeError, KeyError: fields are missing, or there are others.
        """
        lists = {
            name: None if row[name] is None else tuple(row[name])
            for name in ("solution", "point", "box")
        }
        return cls(**{**row, **lists, "scales": Size(*row["scales"])})


def score_answer(
    text: str,
    solution: Sequence[float],
    *,
    key: str,
    prompt: str,
    scales: Size,
    model_size: Size,
    answer_frame: Frame,
    point_radius: float | None = None,
    image: str = "",
    fields: Mapping[str, Any] | None = None,
) -> ScoredAnswer:
    """Compares one answer with its truth.

    ``is_hit`` and ``iou`` are None where they do not apply: IoU with a true point, both with a
    true box without area.

    Args:
        text: What was answered.
        solution: The truth in frame ``original``: 4 numbers of a box or 2 of a point.
        key: The sample's.
        prompt: The instruction.
        scales: Size of the original image.
        model_size: Size of the resized image.
        answer_frame: Frame of the answer.
        point_radius: How near a true point is a hit, as a share of the image's diagonal.
        image: Equal for samples of the same image.
        fields: The record's own fields to keep.

    Raises:
        ConfigError: the truth is a point and there is no ``point_radius``.
    """
    truth = _shape(solution)
    if isinstance(truth, Point) and point_radius is None:
        expected = (
            "is a point, and accuracy needs boxes, as in [x1, y1, x2, y2]; or say how near is a "
            "hit, for example point_radius=0.05 of the image's diagonal"
        )
        raise ConfigError(f"solution of {key}", list(solution), expected)
    case = Case(text, truth, scales, model_size, answer_frame)
    accuracy = case.accuracy(point_radius)
    point, box = case.point, case.box
    return ScoredAnswer(
        key=key,
        prompt=prompt,
        text=text,
        solution=tuple(solution),
        scales=scales,
        image=image,
        failure=None if point is not None else _failure(case),
        point=None if point is None else (point.x, point.y),
        box=None if box is None or point is None else (box.x1, box.y1, box.x2, box.y2),
        is_hit=None if accuracy is None else accuracy == 1,
        iou=case.iou(),
        distance=None if point is None else _distance(point, truth, scales),
        is_outside=bool(case.is_outside),
        size=size_name(truth, scales),
        fields=dict(fields or {}),
    )


def size_name(truth: Point | Box, image: Size) -> str:
    """The name of a target's size, by its share of the image's area; see :data:`SIZES`."""
    if isinstance(truth, Point):
        return POINT_SIZE
    share = truth.area / (image.width * image.height)
    return next(name for name, limit in SIZES if share < limit)


def _shape(solution: Sequence[float]) -> Point | Box:
    if len(solution) == 2:
        x, y = solution
        return Point(x, y)
    x1, y1, x2, y2 = solution
    return Box(x1, y1, x2, y2)


def _failure(case: Case) -> str:
    if isinstance(case.answer, ParseFailure):
        return case.answer.reason
    # Numbers near the largest float overflow when they are scaled, or added for a box's centre.
    is_point = len(case.answer.numbers) == 2
    return "not_finite" if is_point or case.box is not None else "invalid_box"


def _distance(point: Point, truth: Point | Box, image: Size) -> float:
    centre = truth.centre if isinstance(truth, Box) else truth
    return min(1.0, math.hypot(point.x - centre.x, point.y - centre.y) / math.hypot(*image))
