"""What one answer is worth: the numbers that an evaluation keeps of it.

Parser, frames and comparisons are those of the rewards (:class:`~.cases.Case`), so a policy is
measured by what it was trained on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo_stream.boxes import Frame, Point, Size
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.answers import REASONS, ParseFailure, Refusal
from grpo_stream.grounding.cases import Case
from grpo_stream.grounding.frames import View
from grpo_stream.polygons import Shape
from grpo_stream.targets import Target, Wanted, area_share, centre_of, read_target, shape_numbers

FAILURES: tuple[str, ...] = (*REASONS, "invalid_box", "refusal")
"""Why an answer gives no place: the parser's reasons, four numbers that are no box, or a refusal
in words."""

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
ABSENT_SIZE = "not there"
"""The size of a target where nothing is there."""
UNASKED_SIZE = "no place asked"
"""The size of the target of a sample without images that asks for something else."""


SET_IOU = 0.5
"""Least IoU of an answered box with a true one, where all of several are wanted; where no answer
is a box, a point must be in it."""


@dataclass(frozen=True)
class ScoredAnswer:
    """A sample, what was answered, and how near that is. Lengths are pixels of ``original``."""

    key: str
    prompt: str
    """The instruction."""
    text: str
    """What was answered."""
    solution: tuple[Any, ...]
    """The truth: numbers of a place, a tuple for each of several, or none where nothing is there;
    see :mod:`grpo_stream.targets`."""
    scales: Size
    """Width and height of the original image; of several the one at ``image_number``."""
    image: str
    """Equal for samples of the same image."""
    failure: str | None
    """Why the answer gives no place, one of :data:`FAILURES`; None where it does."""
    point: tuple[float, float] | None
    """The answered point, or the answered box's centre; None exactly where ``failure`` is not."""
    box: tuple[float, ...] | None
    """The answered box ``(x1, y1, x2, y2)``; None for points and failures."""
    is_hit: bool | None
    """The point is in the true region, or near enough to the true point; of several places, any
    of them. None where nothing is there, or where all are wanted."""
    iou: float | None
    """Of answered and true box; 0 without an answered box."""
    distance: float | None
    """From ``point`` to the truth (its centre) as a share of the image's diagonal, at most 1; None
    without a point."""
    is_outside: bool
    """The point is outside of the image."""
    size: str
    """Of the (first) target: a name of :data:`SIZES`, :data:`POINT_SIZE` or :data:`ABSENT_SIZE`."""
    fields: dict[str, Any]
    """The record's own fields that results are told apart by."""
    wanted: Wanted = "any"
    """``any`` place of ``solution``, ``all`` of them, or ``none``."""
    is_refusal: bool = False
    """The answer says that nothing is there."""
    set_f1: float | None = None
    """F1 of all answered places against all wanted ones; None where not several are wanted."""
    more_places: tuple[tuple[float, ...], ...] = ()
    """Answered points and boxes after the first, as ``point`` and ``box``."""
    first_look: Mapping[str, Any] | None = None
    """Of a closer look: what was answered at first, and ``region``, the box that was looked at."""
    sampled: tuple[Mapping[str, Any], ...] = ()
    """Of a vote: ``text``, ``point`` and ``is_right`` of each answer that was sampled."""
    num_images: int = 1
    """Of the sample."""
    image_number: int = 0
    """Which of several images the (first) true place is in, from 0; ``point`` and ``box`` are
    read in it."""
    solution_images: tuple[int, ...] = ()
    """Of several images the one that each place of ``solution`` is in."""
    asks_place: bool = True
    """False for a sample without images that asks for something else: nothing is measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"scales": list(self.scales)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "ScoredAnswer":
        """Undoes :meth:`to_dict`, also after a journey through JSON.

        Raises:
            TypeError, KeyError: fields are missing, or there are others.
        """
        lists = {name: None if row[name] is None else tuple(row[name]) for name in ("point", "box")}
        lists["solution"] = _frozen(row["solution"])
        lists["more_places"] = _frozen(row.get("more_places", ()))
        for name in ("sampled", "solution_images"):
            lists[name] = tuple(row.get(name, ()))
        return cls(**{**row, **lists, "scales": Size(*row["scales"])})


def score_answer(
    text: str,
    solution: Sequence[Any],
    *,
    key: str,
    prompt: str,
    scales: Size | Sequence[Size],
    model_size: Size | Sequence[Size],
    answer_frame: Frame,
    point_radius: float | None = None,
    image: str = "",
    fields: Mapping[str, Any] | None = None,
    wanted: Wanted | None = None,
    solution_images: Sequence[int] | None = None,
    view: View | None = None,
) -> ScoredAnswer:
    """Compares one answer with its truth.

    ``is_hit`` and ``iou`` are None where they do not apply: IoU with a true point, both with a
    true box without area, where nothing is there, and where all of several are wanted.

    Args:
        text: What was answered.
        solution: The truth in frame ``original``, see :func:`grpo_stream.targets.read_target`.
        key: The sample's.
        prompt: The instruction.
        scales: Size of the original image; where there is not exactly one, of each.
        model_size: Size of the resized image, likewise.
        answer_frame: Frame of the answer.
        point_radius: How near a true point is a hit, as a share of the image's diagonal.
        image: Equal for samples of the same image.
        fields: The record's own fields to keep.
        wanted: Of several places.
        solution_images: Of several images the one that each place is in; None: the first.
        view: The part of the original that was shown, where that is not all of it.

    Raises:
        ConfigError: a true place is a point and there is no ``point_radius``.
    """
    num_images = 1 if isinstance(scales, Size) else len(scales)
    target = read_target(solution, wanted, solution_images, num_images)
    if point_radius is None and any(isinstance(shape, Point) for shape in target.shapes):
        expected = (
            "is a point, and accuracy needs boxes, as in [x1, y1, x2, y2]; or say how near is a "
            "hit, for example point_radius=0.05 of the image's diagonal"
        )
        raise ConfigError(f"solution of {key}", list(solution), expected)
    case = Case(text, target, scales, model_size, answer_frame, view)
    accuracy = case.accuracy(point_radius)
    point, box = case.point, case.box
    own_size = case.size or Size(0, 0)
    return ScoredAnswer(
        key=key,
        prompt=prompt,
        text=text,
        solution=_frozen(solution),
        scales=own_size,
        image=image,
        failure=None if point is not None or not target.asks_place else _failure(case),
        point=None if point is None else (point.x, point.y),
        box=None if box is None or point is None else (box.x1, box.y1, box.x2, box.y2),
        is_hit=None if accuracy is None else accuracy == 1,
        iou=case.iou(),
        distance=None if point is None else _distance(point, target, case.image, own_size),
        is_outside=bool(case.is_outside) and not case.is_refusal,
        size=size_name(case.truth, own_size) if target.asks_place else UNASKED_SIZE,
        fields=dict(fields or {}),
        wanted=target.wanted,
        is_refusal=case.is_refusal,
        set_f1=_set_f1(case, point_radius),
        more_places=_more_places(case),
        num_images=num_images,
        image_number=case.image,
        solution_images=target.images,
        asks_place=target.asks_place,
    )


def size_name(truth: Shape | None, image: Size) -> str:
    """The name of a target's size, by its share of the image's area; see :data:`SIZES`."""
    if truth is None:
        return ABSENT_SIZE
    if isinstance(truth, Point):
        return POINT_SIZE
    share = area_share(truth, image)
    return next(name for name, limit in SIZES if share < limit or limit == math.inf)


def _frozen(solution: Sequence[Any]) -> tuple[Any, ...]:
    """Lists as tuples, one level down."""
    return tuple(tuple(item) if isinstance(item, (list, tuple)) else item for item in solution)


def _set_f1(case: Case, point_radius: float | None) -> float | None:
    if len(case.target.shapes) < 2:
        return None
    by = "iou" if any(box is not None for _, box in case.places) else "hit"
    return case.set_f1(by, SET_IOU, point_radius)


def _more_places(case: Case) -> tuple[tuple[float, ...], ...]:
    shapes = [point if box is None else box for point, box in case.places[1:]]
    return tuple(tuple(shape_numbers(shape)) for shape in shapes if shape is not None)


def _failure(case: Case) -> str:
    if isinstance(case.answer, ParseFailure):
        return case.answer.reason
    if isinstance(case.answer, Refusal):
        return "refusal"
    # Numbers near the largest float overflow when they are scaled, or added for a box's centre.
    is_point = len(case.answer.numbers) == 2
    return "not_finite" if is_point or case.box is not None else "invalid_box"


def _distance(point: Point, target: Target, image: int, size: Size) -> float | None:
    """To the nearest centre in an image; None where nothing is there."""
    places = enumerate(target.shapes)
    centres = [centre_of(shape) for number, shape in places if target.image_of(number) == image]
    away = [math.hypot(point.x - centre.x, point.y - centre.y) for centre in centres]
    return min(1.0, min(away) / math.hypot(*size)) if away else None
