"""A completion and its truth, side by side in frame ``original``: what every reward measures."""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from grpo_stream.boxes import Box, Frame, Point, Size
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.answers import (
    Answer,
    LogMetric,
    log_failures,
    parse_answers,
)
from grpo_stream.grounding.frames import View, to_original
from grpo_stream.grounding.image_sizes import (
    Sizes,
    each_size,
    missing_size,
    shared_of_case,
    size_at,
)
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
from grpo_stream.targets import IMAGES_FIELD, WANTED_FIELD, Target, has_extent

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or a conversation ``[{"role": "assistant", "content": text}]``."""
Numbers: TypeAlias = Sequence[float]

Placed: TypeAlias = tuple[Point | None, Box | None]
"""The point and the valid box of an answer, in frame ``original`` of an image."""

_UNUSED = Size(1, 1)


class Truth(NamedTuple):
    """A true place and the image it is in, counted from 0."""

    shape: Shape
    image: int


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
        original: Size of the original image, or of each where there is not exactly one; may be
            None where nothing needs it.
        model: The same of the resized image.
        frame: Frame of the answer.
        view: The part of the (one) original that was shown, where that is not all of it.

    An answer names no image: of several it is read in the one whose place it is compared with.
    Measures of one answer look at the first one of the text. Each is None where it does not apply
    to the truth, and 0 without a usable answer. Of several places any of which counts it is that
    of the best; it does not apply where all are wanted, or none is there.
    """

    def __init__(
        self,
        text: str,
        truth: Shape | Target,
        original: Sizes,
        model: Sizes,
        frame: Frame,
        view: View | None = None,
    ) -> None:
        self.answers = parse_answers(text)
        self.answer = self.answers.first
        self.target = truth if isinstance(truth, Target) else Target((truth,))
        self.truth: Shape | None = self.target.shapes[0] if self.target.shapes else None
        """The (first) true place; None where nothing is there."""
        self._originals, self._models = each_size(original), each_size(model)
        self._frame, self._view = frame, view
        self.image = self.target.image_of(0)
        """The image that the (first) true place is in, counted from 0."""
        self.size = size_at(self._originals, self.image)
        """Of that image, if it is known."""
        self._firsts: dict[int, Placed] = {}
        self.point: Point | None
        """The predicted point or centre in ``original``; None without a usable answer."""
        self.box: Box | None
        """The predicted box in ``original``; None without one that is valid."""
        self.point, self.box = self._first_in(self.image)

    def _first_in(self, image: int) -> Placed:
        """The first answer, in ``original`` of an image."""
        if image not in self._firsts:
            found: Placed = (None, None)
            if isinstance(self.answer, Answer) and self._originals:
                found = self._placed(self.answer, image)
            self._firsts[image] = found
        return self._firsts[image]

    def _placed(self, answer: Answer, image: int) -> Placed:
        """The point and the valid box of an answer, in ``original`` of an image."""
        box = answer.box(self._frame)
        valid: Box | None = None
        # Frame "original" uses no size, and _sizes has made sure of those that are used.
        sizes = {
            "model_size": size_at(self._models, image) or _UNUSED,
            "original_size": size_at(self._originals, image) or _UNUSED,
        }
        view = self._view if self._view is not None and self._view.image == image else None
        if box is None:
            point: Point | None = to_original(answer.point(self._frame), view=view, **sizes)
        else:
            box = to_original(box, view=view, **sizes)
            valid = box if box.is_valid else None
            point = None if valid is None else valid.centre
        # Numbers near the largest float become infinite when they are scaled or added.
        if point is not None and not (math.isfinite(point.x) and math.isfinite(point.y)):
            point = None
        return point, valid

    @functools.cached_property
    def places(self) -> list[Placed]:
        """Point and box of every answer of the text, as :attr:`point` and :attr:`box`."""
        return self._places_in(self.image)

    def _places_in(self, image: int) -> list[Placed]:
        if not self._originals:
            return []  # there is no image to be in
        return [self._placed(answer, image) for answer in self.answers.places]

    @property
    def is_refusal(self) -> bool:
        """The text says that nothing is there."""
        return self.answers.is_refusal

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
        return float(any(self._hits(self._first_in(t.image), t, point_radius) for t in truths))

    def iou(self) -> float | None:
        """Intersection over union, in [0, 1]."""
        pairs = [(self._first_in(image)[1], region) for region, image in self._regions()]
        return best([0.0 if box is None else region_iou(box, region) for box, region in pairs])

    def giou(self) -> float | None:
        """Generalised intersection over union, in [-1, 1]; -1 without a valid box."""
        pairs = [(self._first_in(image)[1], region) for region, image in self._regions()]
        return best([-1.0 if box is None else giou(box, region) for box, region in pairs])

    def distance(self) -> float | None:
        """``max(0, 1 - (d / dmax)^2)`` in coordinates divided by the image's sides."""
        found = []
        if self.size is None and self._originals:
            raise missing_size("scales", "the distance is one in shares of the image's sides")
        for shape, image in self._any_truths():
            point, size = self._first_in(image)[0], size_at(self._originals, image)
            found.append(0.0 if point is None or size is None else nearness(point, shape, size))
        return best(found)

    def gaussian(self) -> float | None:
        """``exp(-((dx / sx)^2 + (dy / sy)^2) / 2)`` with half of the true sides as sx, sy."""
        pairs = [(self._first_in(image)[0], region) for region, image in self._regions()]
        return best([0.0 if point is None else hill(point, region) for point, region in pairs])

    def set_f1(self, by: str, threshold: float, point_radius: float | None) -> float | None:
        """F1 of all answers against all places; see :func:`~.rewards.set_reward`.

        None where any of several counts, or where none can be scored.
        """
        truths = self._truths()
        if by == "iou" or point_radius is None:
            truths = [truth for truth in truths if not isinstance(truth.shape, Point)]
        if not truths or (len(self.target.shapes) > 1 and not self.target.wants_all):
            return None
        num_answers = 0 if self.is_refusal else len(self.answers.places)
        places = {image: self._places_in(image) for image in {truth.image for truth in truths}}

        def fits(answer: int, number: int) -> bool:
            truth = truths[number]
            placed = places[truth.image][answer]
            if by == "hit" or isinstance(truth.shape, Point):
                return self._hits(placed, truth, point_radius)
            return placed[1] is not None and region_iou(placed[1], truth.shape) >= threshold

        matched = num_matched(num_answers, len(truths), fits)
        return f1_score(matched, num_answers, len(truths))

    def first_hit(self, point_radius: float | None) -> int | None:
        """The place, from 1, of the first answer that hits; 0 if none does, None as accuracy."""
        truths = self._scored_truths(point_radius)
        if not truths:
            return None
        places = [] if self.is_refusal else self.answers.places
        hits = (
            any(self._hits(self._placed(answer, t.image), t, point_radius) for t in truths)
            for answer in places
        )
        return next((rank for rank, hit in enumerate(hits, 1) if hit), 0)

    def _truths(self) -> list[Truth]:
        """The places that can be scored."""
        places = enumerate(self.target.shapes)
        return [Truth(s, self.target.image_of(place)) for place, s in places if has_extent(s)]

    def _any_truths(self) -> list[Truth]:
        """The places that one answer can be measured by."""
        if len(self.target.shapes) > 1 and self.target.wants_all:
            return []
        return self._truths()

    def _regions(self) -> list[tuple[Box | Polygon, int]]:
        pairs = self._any_truths()
        return [(shape, image) for shape, image in pairs if not isinstance(shape, Point)]

    def _scored_truths(self, point_radius: float | None) -> Sequence[Truth]:
        truths = self._any_truths()
        if point_radius is not None:
            return truths
        return [truth for truth in truths if not isinstance(truth.shape, Point)]

    def _hits(self, placed: Placed, truth: Truth, point_radius: float | None) -> bool:
        reach = 0.0
        if isinstance(truth.shape, Point):
            size = size_at(self._originals, truth.image)
            if size is None:
                raise missing_size("scales", "point_radius is a share of the image's diagonal")
            reach = (point_radius or 0.0) * math.hypot(*size)
        return placed[0] is not None and is_hit(placed[0], truth.shape, reach)


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
        scales: Sizes of the original images; where a sample has not exactly one, the list of
            them. The column ``solution_images`` then says for each place which one it is in.
        model_size: Sizes of the resized images, likewise.
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
        raise missing_size("answer_frame", 'name it, for example "original" if nothing is resized')
    columns: dict[str, Sequence[Any]] = {
        "solution": solution,
        "scales": [None] * count if scales is None else scales,
        "model_size": [()] * count if model_size is None else model_size,
        "answer_frame": [answer_frame] * count if isinstance(answer_frame, str) else answer_frame,
        # A field of the records' own, so it is not there where no record of the batch has it.
        WANTED_FIELD: _.get(WANTED_FIELD) or [None] * count,
        IMAGES_FIELD: _.get(IMAGES_FIELD) or [None] * count,
    }
    for name, column in columns.items():
        if len(column) != count:
            raise ConfigError(name, f"{len(column)} entries", f"must be {count}, as completions")
    cases: list[Case] = []
    last: tuple[Any, ...] = ()
    for completion, *row in zip(completions, *columns.values(), strict=True):
        # The completions of a group share their row's objects: those are checked once.
        if not last or any(map(operator.is_not, row, last)):
            truth, original, model, frame, wanted, images = row
            shared = shared_of_case(truth, original, model, frame, wanted, images)
            last = tuple(row)
        cases.append(Case(completion_text(completion), *shared))
    if log_metric is not None and cases:
        log_failures([case.answer for case in cases], log_metric)
        if scales is not None:
            num_outside = sum(bool(case.is_outside) and not case.is_refusal for case in cases)
            log_metric("answers_outside_image", num_outside / len(cases))
    return cases
