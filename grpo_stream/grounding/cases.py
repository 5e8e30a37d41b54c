"""A completion and its truth, side by side in frame ``original``: what every reward measures."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from grpo_stream.boxes import FRAMES, Box, Frame, Point, Size, iou
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.answers import REASONS, Answer, ParseFailure, parse_answer
from grpo_stream.grounding.frames import to_original

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or a conversation ``[{"role": "assistant", "content": text}]``."""
Numbers: TypeAlias = Sequence[float]
LogMetric: TypeAlias = Callable[[str, float], None]

_UNUSED = Size(1, 1)
_HUGE = Size(10**160, 10**160)


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
        truth: The true box or point, in frame ``original``.
        original: Size of the original image; may be None where nothing needs it.
        model: Size of the resized image; may be None where nothing needs it.
        frame: Frame of the answer.

    Each measure is None where it does not apply to the truth, and 0 without a usable answer.
    """

    def __init__(
        self, text: str, truth: Point | Box, original: Size | None, model: Size | None, frame: Frame
    ) -> None:
        self.answer = parse_answer(text)
        self.size = original
        self.truth = truth
        self.point: Point | None = None
        """The predicted point or centre in ``original``; None without a usable answer."""
        self.box: Box | None = None
        """The predicted box in ``original``; None without one that is valid."""
        if isinstance(self.answer, Answer):
            # Frame "original" uses no size, and _sizes has made sure of those that are used.
            sizes = {"model_size": model or _UNUSED, "original_size": original or _UNUSED}
            box = self.answer.box(frame)
            if box is None:
                point: Point | None = to_original(self.answer.point(frame), **sizes)
            else:
                box = to_original(box, **sizes)
                self.box = box if box.is_valid else None
                point = None if self.box is None else self.box.centre
            # Numbers near the largest float become infinite when they are scaled or added.
            if point is not None and math.isfinite(point.x) and math.isfinite(point.y):
                self.point = point

    @property
    def can_score(self) -> bool:
        """The truth is a point or a valid box, whose area is no rounding error either."""
        return isinstance(self.truth, Point) or (self.truth.is_valid and self.truth.area > 0)

    @property
    def is_outside(self) -> bool | None:
        """The predicted point is outside the image; None without a point or without the size."""
        if self.point is None or self.size is None:
            return None
        return not Box(0, 0, *self.size).contains(self.point)

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

    def giou(self) -> float | None:
        """Generalised intersection over union, in [-1, 1]; -1 without a valid box."""
        if isinstance(self.truth, Point) or not self.can_score:
            return None
        return -1.0 if self.box is None else _giou(self.box, self.truth)

    def distance(self) -> float | None:
        """``max(0, 1 - (d / dmax)^2)`` in coordinates divided by the image's sides."""
        if self.size is None:
            raise _missing("scales", "the distance is one in shares of the image's sides")
        if not self.can_score:
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
    scales: Sequence[Numbers] | None = None,
    model_size: Sequence[Numbers] | None = None,
    answer_frame: str | Sequence[str] | None = None,
    *,
    log_metric: LogMetric | None = None,
    **_: Any,
) -> list[Case]:
    """One case per completion, from the columns that trl hands a reward function.

    Args:
        completions: Texts or conversations.
        solution: Truths: 4 numbers of a box or 2 of a point, in frame ``original``.
        scales: Sizes of the original images.
        model_size: Sizes of the resized images.
        answer_frame: Frame of the answers: one name, or one per completion.
        log_metric: trl's logger. Receives ``parse_failures/<reason>``, the share of completions
            that failed for each reason, and, with ``scales``, ``answers_outside_image``, the share
            whose point is not in the image: many of them speak of a wrong frame. All are logged,
            zeros too: trl averages over the calls that logged a name, so that a share left out
            would not count as 0. Several rewards that log the same shares do no harm.

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
    cases: list[Case] = []
    last: tuple[Any, ...] = ()
    for completion, *row in zip(completions, *columns.values(), strict=True):
        # The completions of a group share their row's objects: those are checked once.
        if not last or any(map(operator.is_not, row, last)):
            truth, original, model, frame = row
            shared = _shape(truth), *_sizes(original, model, frame), frame
            last = tuple(row)
        cases.append(Case(completion_text(completion), *shared))
    if log_metric is not None and cases:
        log_failures([case.answer for case in cases], log_metric)
        if scales is not None:
            num_outside = sum(bool(case.is_outside) for case in cases)
            log_metric("answers_outside_image", num_outside / len(cases))
    return cases


def log_failures(answers: Sequence[Answer | ParseFailure], log_metric: LogMetric) -> None:
    """Logs ``parse_failures/<reason>`` for every reason, as a share of ``answers``."""
    reasons = [answer.reason for answer in answers if isinstance(answer, ParseFailure)]
    for reason in REASONS:
        log_metric(f"parse_failures/{reason}", reasons.count(reason) / len(answers))


def _giou(a: Box, b: Box) -> float:
    """``iou - (hull - union) / hull`` of two valid boxes; the hull is the least box around both."""
    hull = Box(min(a.x1, b.x1), min(a.y1, b.y1), max(a.x2, b.x2), max(a.y2, b.y2))
    if hull.area > 1e300:  # nearly as wide as floats go: the same boxes, smaller
        a, b, hull = (box.scaled(_HUGE, _UNUSED, "original") for box in (a, b, hull))
    share = iou(a, b)
    # Of iou = overlap / union and area + area = union + overlap, the union.
    union = (a.area + b.area) / (1 + share)
    return share - (1 - union / hull.area)


def _sizes(original: Numbers, model: Numbers, frame: str) -> tuple[Size | None, Size | None]:
    if frame not in FRAMES:
        raise ConfigError("answer_frame", frame, f"must be one of {', '.join(FRAMES)}")
    if not len(original) and frame != "original":
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
