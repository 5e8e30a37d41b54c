"""A completion and its truth, side by side in frame ``original``: what every reward measures."""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from grpo_stream.boxes import FRAMES, Box, Frame, Point, Size
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.answers import (
    Answer,
    LogMetric,
    log_failures,
    parse_answers,
)
from grpo_stream.grounding.frames import View, to_original
from grpo_stream.grounding.shape_measures import (
    best,
    f1_score,
    giou,
    hill,
    is_hit,
    nearness,
    num_matched,
)
from grpo_stream.polygons import Polygon, Shape, region_iou
from grpo_stream.targets import WANTED_FIELD, Target, has_extent, read_target

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or a conversation ``[{"role": "assistant", "content": text}]``."""
Numbers: TypeAlias = Sequence[float]

_UNUSED = Size(1, 1)


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
        truth: The target, or the one true place, in frame ``original``.
        original: Size of the original image; may be None where nothing needs it.
        model: Size of the resized image; may be None where nothing needs it.
        frame: Frame of the answer.
        view: The part of the original that was shown, where that is not all of it.

    Measures of one answer look at the first one of the text. Each is None where it does not apply
    to the truth, and 0 without a usable answer. Of several places any of which counts it is that
    of the best; it does not apply where all are wanted, or none is there.
    """

    def __init__(
        self,
        text: str,
        truth: Shape | Target,
        original: Size | None,
        model: Size | None,
        frame: Frame,
        view: View | None = None,
    ) -> None:
        self.answers = parse_answers(text)
        self.answer = self.answers.first
        self.size = original
        self.target = truth if isinstance(truth, Target) else Target((truth,))
        self.truth: Shape | None = self.target.shapes[0] if self.target.shapes else None
        """The (first) true place; None where nothing is there."""
        # Frame "original" uses no size, and _sizes has made sure of those that are used.
        self._sizes = {"model_size": model or _UNUSED, "original_size": original or _UNUSED}
        self._frame, self._view = frame, view
        self.point: Point | None = None
        """The predicted point or centre in ``original``; None without a usable answer."""
        self.box: Box | None = None
        """The predicted box in ``original``; None without one that is valid."""
        if isinstance(self.answer, Answer):
            self.point, self.box = self._placed(self.answer)

    def _placed(self, answer: Answer) -> tuple[Point | None, Box | None]:
        """The point and the valid box of an answer, in ``original``."""
        box = answer.box(self._frame)
        valid: Box | None = None
        if box is None:
            point: Point | None = to_original(
                answer.point(self._frame), view=self._view, **self._sizes
            )
        else:
            box = to_original(box, view=self._view, **self._sizes)
            valid = box if box.is_valid else None
            point = None if valid is None else valid.centre
        # Numbers near the largest float become infinite when they are scaled or added.
        if point is not None and not (math.isfinite(point.x) and math.isfinite(point.y)):
            point = None
        return point, valid

    @functools.cached_property
    def places(self) -> list[tuple[Point | None, Box | None]]:
        """Point and box of every answer of the text, as :attr:`point` and :attr:`box`."""
        return [self._placed(answer) for answer in self.answers.places]

    @property
    def is_refusal(self) -> bool:
        """The text says that nothing is there."""
        return self.answers.is_refusal

    @property
    def can_score(self) -> bool:
        """Any true place is a point or a valid region, whose area is no rounding error either."""
        return any(map(has_extent, self.target.shapes))

    @property
    def is_outside(self) -> bool | None:
        """The predicted point is outside the image; None without a point or without the size."""
        if self.point is None or self.size is None:
            return None
        return not Box(0, 0, *self.size).contains(self.point)

    def accuracy(self, point_radius: float | None) -> float | None:
        """1 for a hit, else 0; a true point is hit within ``point_radius`` x the diagonal."""
        truths = self._scored_truths(point_radius)
        if not truths:
            return None
        return float(self._hits(self.point, truths, point_radius))

    def iou(self) -> float | None:
        """Intersection over union, in [0, 1]."""
        box = self.box
        return best([0.0 if box is None else region_iou(box, t) for t in self._regions()])

    def giou(self) -> float | None:
        """Generalised intersection over union, in [-1, 1]; -1 without a valid box."""
        box = self.box
        return best([-1.0 if box is None else giou(box, t) for t in self._regions()])

    def distance(self) -> float | None:
        """``max(0, 1 - (d / dmax)^2)`` in coordinates divided by the image's sides."""
        size = self.size
        if size is None:
            raise _missing("scales", "the distance is one in shares of the image's sides")
        point = self.point
        return best(
            [0.0 if point is None else nearness(point, t, size) for t in self._any_truths()]
        )

    def gaussian(self) -> float | None:
        """``exp(-((dx / sx)^2 + (dy / sy)^2) / 2)`` with half of the true sides as sx, sy."""
        point = self.point
        return best([0.0 if point is None else hill(point, t) for t in self._regions()])

    def set_f1(self, by: str, threshold: float, point_radius: float | None) -> float | None:
        """F1 of all answers against all places; see :func:`~.rewards.set_reward`.

        None where any of several counts, or where none can be scored.
        """
        truths = [truth for truth in self.target.shapes if has_extent(truth)]
        if by == "iou" or point_radius is None:
            truths = [truth for truth in truths if not isinstance(truth, Point)]
        if not truths or (len(self.target.shapes) > 1 and not self.target.wants_all):
            return None
        places = [] if self.is_refusal else self.places

        def fits(answer: int, number: int) -> bool:
            point, box = places[answer]
            truth = truths[number]
            if by == "hit" or isinstance(truth, Point):
                return self._hits(point, [truth], point_radius)
            return box is not None and region_iou(box, truth) >= threshold

        matched = num_matched(len(places), len(truths), fits)
        return f1_score(matched, len(places), len(truths))

    def first_hit(self, point_radius: float | None) -> int | None:
        """The place, from 1, of the first answer that hits; 0 if none does, None as accuracy."""
        truths = self._scored_truths(point_radius)
        if not truths:
            return None
        places = [] if self.is_refusal else self.places
        hits = (self._hits(point, truths, point_radius) for point, _ in places)
        return next((rank for rank, hit in enumerate(hits, 1) if hit), 0)

    def _any_truths(self) -> list[Shape]:
        """The places that one answer can be measured by."""
        shapes = self.target.shapes
        if len(shapes) > 1 and self.target.wants_all:
            return []
        return [shape for shape in shapes if has_extent(shape)]

    def _regions(self) -> list[Box | Polygon]:
        return [truth for truth in self._any_truths() if not isinstance(truth, Point)]

    def _scored_truths(self, point_radius: float | None) -> Sequence[Shape]:
        return self._regions() if point_radius is None else self._any_truths()

    def _hits(
        self, point: Point | None, truths: Sequence[Shape], point_radius: float | None
    ) -> bool:
        reach = 0.0
        if any(isinstance(truth, Point) for truth in truths):
            if self.size is None:
                raise _missing("scales", "point_radius is a share of the image's diagonal")
            reach = (point_radius or 0.0) * math.hypot(*self.size)
        return point is not None and any(is_hit(point, truth, reach) for truth in truths)


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
        solution: Truths in frame ``original``: 4 numbers of a box, 2 of a point, 6 or more of a
            polygon, a list of these, or an empty one (:mod:`grpo_stream.targets`). Of several the
            column ``solution_wanted`` says ``any`` or ``all``, where records have it.
        scales: Sizes of the original images.
        model_size: Sizes of the resized images.
        answer_frame: Frame of the answers: one name, or one per completion.
        log_metric: trl's logger. Receives ``parse_failures/<reason>``, the share of completions
            that failed for each reason, and, with ``scales``, ``answers_outside_image``, the share
            whose point is not in the image: many of them speak of a wrong frame; and ``refusals``,
            the share that says that nothing is there. All are logged,
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
        # A field of the records' own, so it is not there where no record of the batch has it.
        WANTED_FIELD: _.get(WANTED_FIELD) or [None] * count,
    }
    for name, column in columns.items():
        if len(column) != count:
            raise ConfigError(name, f"{len(column)} entries", f"must be {count}, as completions")
    cases: list[Case] = []
    last: tuple[Any, ...] = ()
    for completion, *row in zip(completions, *columns.values(), strict=True):
        # The completions of a group share their row's objects: those are checked once.
        if not last or any(map(operator.is_not, row, last)):
            truth, original, model, frame, wanted = row
            shared = read_target(truth, wanted), *_sizes(original, model, frame), frame
            last = tuple(row)
        cases.append(Case(completion_text(completion), *shared))
    if log_metric is not None and cases:
        log_failures([case.answer for case in cases], log_metric)
        if scales is not None:
            num_outside = sum(bool(case.is_outside) and not case.is_refusal for case in cases)
            log_metric("answers_outside_image", num_outside / len(cases))
    return cases


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


def _missing(name: str, remedy: str) -> ConfigError:
    return ConfigError(
        name, None, f"is needed to bring answers and solutions to one frame: {remedy}"
    )
