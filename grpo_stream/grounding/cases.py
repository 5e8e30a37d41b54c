"""A completion and its truth, side by side in frame ``original``: what every reward measures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from grpo_stream.boxes import FRAMES, Box, Frame, Point, Size, iou
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.answers import Answer, parse_answer
from grpo_stream.grounding.frames import to_original

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or a conversation ``[{"role": "assistant", "content": text}]``."""
Numbers: TypeAlias = Sequence[float]


def completion_text(completion: Completion) -> str:
    """The text of a completion: itself, or that of its last message."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(str(block.get("text", "")) for block in content)


class Case:
    """One completion and its truth.

    Args:
        text: The completion's text.
        truth: 4 numbers of a box or 2 of a point, in frame ``original``.
        original: Size of the original image; may be None where nothing needs it.
        model: Size of the resized image; may be None where nothing needs it.
        frame: Frame of the answer.

    Each measure is None where it does not apply to the truth, and 0 without a usable answer.
    """

    def __init__(
        self, text: str, truth: Numbers, original: Size | None, model: Size | None, frame: Frame
    ) -> None:
        self.answer = parse_answer(text)
        self.size = original
        self.truth = _shape(truth)
        self.point: Point | None = None
        """The predicted point or centre in ``original``; None without a usable answer."""
        self.box: Box | None = None
        """The predicted box in ``original``; None without one that is valid."""
        if isinstance(self.answer, Answer):
            # Frame "original" uses no size, and _sizes has made sure of those that are used.
            sizes = {"model_size": model or Size(1, 1), "original_size": original or Size(1, 1)}
            box = self.answer.box(frame)
            point = to_original(self.answer.point(frame), **sizes)
            if box is not None:
                box = to_original(box, **sizes)
                self.box = box if box.is_valid else None
            # Numbers near the largest float become infinite when they are scaled.
            is_usable = math.isfinite(point.x) and math.isfinite(point.y)
            self.point = point if is_usable and (box is None or box.is_valid) else None

    @property
    def can_score(self) -> bool:
        """The truth is a point or a valid box."""
        return isinstance(self.truth, Point) or self.truth.is_valid

    def accuracy(self, point_radius: float | None) -> float | None:
        """1 for a hit, else 0; a true point is hit within ``point_radius`` x the diagonal."""
        if not self.can_score:
            return None
        if isinstance(self.truth, Box):
            return float(self.point is not None and self.truth.contains(self.point))
        if point_radius is None:
            return None
        if self.size is None:
            raise _missing("scales", "point_radius is a share of the image's diagonal")
        if self.point is None:
            return 0.0
        away = math.hypot(self.point.x - self.truth.x, self.point.y - self.truth.y)
        return float(away <= point_radius * math.hypot(*self.size))

    def iou(self) -> float | None:
        """Intersection over union, in [0, 1]."""
        if isinstance(self.truth, Point) or not self.can_score:
            return None
        return 0.0 if self.box is None else iou(self.box, self.truth)

    def distance(self) -> float | None:
        """``max(0, 1 - (d / dmax)^2)`` in coordinates divided by the image's sides."""
        if not self.can_score or self.size is None:
            return None
        if self.point is None:
            return 0.0
        width, height = self.size
        centre = self.truth.centre if isinstance(self.truth, Box) else self.truth
        x, y = centre.x / width, centre.y / height
        away = math.hypot(self.point.x / width - x, self.point.y / height - y)
        ratio = away / math.hypot(max(x, 1 - x), max(y, 1 - y))
        return max(0.0, 1 - ratio * ratio)

    def gaussian(self) -> float | None:
        """``exp(-((dx / sx)^2 + (dy / sy)^2) / 2)`` with half of the true sides as sx, sy."""
        if isinstance(self.truth, Point) or not self.can_score:
            return None
        if self.point is None:
            return 0.0
        centre = self.truth.centre
        x = (self.point.x - centre.x) / (self.truth.width / 2)
        y = (self.point.y - centre.y) / (self.truth.height / 2)
        return math.exp(-(x * x + y * y) / 2)


def cases_of(
    completions: Sequence[Completion],
    solution: Sequence[Numbers],
    scales: Sequence[Numbers] | None,
    model_size: Sequence[Numbers] | None,
    answer_frame: str | Sequence[str] | None,
    *,
    need_scales: bool = False,
) -> list[Case]:
    """One case per completion, from the columns that a reward function receives.

    Raises:
        ConfigError: a frame or size is needed and missing, or a column has another length.
    """
    count = len(completions)
    if answer_frame is None:
        raise _missing("answer_frame", 'name it, for example "original" if nothing is resized')
    columns: dict[str, Sequence[Any]] = {
        "solution": solution,
        "scales": [()] * count if scales is None else scales,
        "model_size": [()] * count if model_size is None else model_size,
        "answer_frame": [answer_frame] * count if isinstance(answer_frame, str) else answer_frame,
    }
    for name, column in columns.items():
        if len(column) != count:
            raise ConfigError(name, f"{len(column)} entries", f"must be {count}, as completions")
    cases = []
    rows = zip(completions, *columns.values(), strict=True)
    for completion, truth, original, model, frame in rows:
        sizes = _sizes(original, model, frame, need_scales=need_scales)
        cases.append(Case(completion_text(completion), truth, *sizes, frame))
    return cases


def _sizes(
    original: Numbers, model: Numbers, frame: str, *, need_scales: bool
) -> tuple[Size | None, Size | None]:
    if frame not in FRAMES:
        raise ConfigError("answer_frame", frame, f"must be one of {', '.join(FRAMES)}")
    if not len(original) and (need_scales or frame != "original"):
        raise _missing("scales", "give (width, height) of every original image")
    if not len(model) and frame == "model":
        raise _missing("model_size", "give (width, height) of every resized image")
    return _size("scales", original), _size("model_size", model)


def _size(name: str, numbers: Numbers) -> Size | None:
    if not len(numbers):
        return None
    if len(numbers) != 2 or not all(number > 0 for number in numbers):
        raise ConfigError(
            name, numbers, "must be (width, height) in pixels, for example (640, 480)"
        )
    return Size(int(numbers[0]), int(numbers[1]))


def _shape(numbers: Numbers) -> Point | Box:
    values = [float(number) for number in numbers]
    if len(values) == 4:
        x1, y1, x2, y2 = values
        return Box(x1, y1, x2, y2)
    if len(values) == 2:
        x, y = values
        return Point(x, y)
    raise ConfigError("solution", numbers, "must be a box of 4 numbers or a point of 2")


def _missing(name: str, remedy: str) -> ConfigError:
    return ConfigError(
        name, None, f"is needed to bring answers and solutions to one frame: {remedy}"
    )
