"""Answers of an evaluation as cards: which are worth a picture, and what each one shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.polygons import Shape
from grpo_stream.report.gallery import GallerySample, card_html
from grpo_stream.report.marked_image import Colour, Mark, Role
from grpo_stream.targets import area_share, read_shape, read_target

LOOK_COLOUR: Colour = (125, 60, 200)
"""RGB of what a closer look was at."""

Answer = Mapping[str, Any]
"""One line of ``answers.jsonl``."""


@dataclass(frozen=True)
class Pick:
    """Answers to be shown together."""

    title: str
    note: str
    places: list[int]
    """Of the answers, in the order to show them."""


def pick_answers(answers: Sequence[Answer], count: int) -> list[Pick]:
    """Up to ``count`` answers of each kind; kinds without any are left out.

    Nothing is drawn by chance: the same answers give the same picks. Within a kind every image is
    shown once before one is shown again.
    """
    kinds: list[tuple[str, str, Callable[[Answer], bool], Callable[[Answer], float]]] = [
        (
            "Farthest misses",
            "Answers that lie farthest from the truth.",
            lambda answer: answer["is_hit"] is False and answer["point"] is not None,
            lambda answer: -answer["distance"],
        ),
        (
            "Near misses",
            "Misses that lie nearest to the true centre.",
            lambda answer: answer["is_hit"] is False and answer["point"] is not None,
            lambda answer: float(answer["distance"]),
        ),
        (
            "Smallest targets",
            "The smallest share of the image, whether hit or missed.",
            lambda answer: _target_area(answer) > 0,
            _target_area,
        ),
        (
            "Best answers",
            "Hits with the greatest overlap, or else nearest to the true centre.",
            lambda answer: bool(answer["is_hit"]),
            lambda answer: answer["distance"] - (answer["iou"] or 0),
        ),
        (
            "Unreadable answers",
            "Texts that give no place; they count as misses.",
            lambda answer: answer["failure"] is not None and not _refuses(answer),
            lambda _: 0.0,
        ),
        (
            "Missed refusals",
            "Nothing is there, and a place was answered, or nothing that can be read.",
            lambda a: not a["solution"] and a.get("asks_place", True) and not _refuses(a),
            lambda _: 0.0,
        ),
        (
            "Wrong refusals",
            "Something is there, and the answer says that it is not.",
            lambda answer: bool(answer["solution"]) and _refuses(answer),
            lambda _: 0.0,
        ),
        (
            "Incomplete sets",
            "All of several places are wanted; lowest F1 first.",
            lambda answer: answer.get("set_f1") not in (None, 1),
            lambda answer: float(answer["set_f1"]),
        ),
    ]
    picks = []
    for title, note, belongs, order in kinds:
        places = [place for place, answer in enumerate(answers) if belongs(answer)]
        places.sort(key=lambda place: order(answers[place]))
        places = _spread(answers, places)[:count]
        if places:
            picks.append(Pick(title, note, places))
    return picks


def _target_area(answer: Answer) -> float:
    """Of the smallest true region, as a share of the image; 0 without one."""
    shapes = read_target(answer["solution"]).shapes
    size = Size(*answer["scales"])
    return min((area_share(s, size) for s in shapes if not isinstance(s, Point)), default=0.0)


def _refuses(answer: Answer) -> bool:
    return bool(answer.get("is_refusal"))


def _spread(answers: Sequence[Answer], places: Sequence[int]) -> list[int]:
    """Each image's first place, then each one's second, and so on."""
    met: dict[str, int] = {}
    turns = []
    for rank, place in enumerate(places):
        image = answers[place]["image"]
        met[image] = met.get(image, -1) + 1
        turns.append((met[image], rank, place))
    return [place for _, _, place in sorted(turns)]


def answer_card(answer: Answer, image: Image.Image) -> str:
    """A sample with its true place and what was answered.

    Args:
        answer: The sample's line of ``answers.jsonl``.
        image: The sample's image at any size, RGB; of several the one at ``image_number``.
    """
    original, shown = Size(*answer["scales"]), Size(*image.size)

    def on_image(shape: Shape) -> Shape:
        return shape.scaled(original, shown, "original")

    role: Role = "right" if is_right(answer) else "wrong"
    marks = [Mark(None, role, "answer")] if _refuses(answer) else []
    if answer["box"] is not None:
        marks.append(Mark(on_image(Box(*answer["box"])), role))
    if answer["point"] is not None and not _refuses(answer):
        marks.append(Mark(on_image(Point(*answer["point"])), role))
    marks += [
        Mark(on_image(read_shape(numbers)), role) for numbers in answer.get("more_places", ())
    ]
    marks = [*_first_look(answer, on_image), *marks]
    truths = read_target(answer["solution"]).shapes
    facts = [("answer", answer["text"] or "(nothing)"), ("size", answer["size"])]
    if (num_images := answer.get("num_images", 1)) > 1:
        number = answer["image_number"]
        lies_in = answer["solution_images"]
        truths = tuple(t for t, at in zip(truths, lies_in, strict=True) if at == number)
        facts.append(("image", f"{number + 1} of {num_images}"))
    if answer["iou"] is not None and answer["box"] is not None:
        facts.append(("IoU", f"{answer['iou']:.3f}"))
    if answer.get("first_look"):
        facts.append(("at first", answer["first_look"]["text"] or "(nothing)"))
    if answer.get("sampled"):
        num_right = sum(bool(one["is_right"]) for one in answer["sampled"])
        facts.append(("sampled", f"{num_right} of {len(answer['sampled'])} right"))
    facts += [(name.rpartition(".")[2], str(value)) for name, value in answer["fields"].items()]
    return card_html(
        GallerySample(
            title=answer["key"],
            prompt=answer["prompt"],
            images=[image],
            shapes=[(0, on_image(truth)) for truth in truths],
            facts=facts,
            answers=marks,
            verdict=(role, _verdict(answer)),
        )
    )


def _first_look(answer: Answer, on_image: Callable[[Shape], Shape]) -> list[Mark]:
    """What was answered at first, and what was looked at again."""
    first = answer.get("first_look")
    if not first:
        return []
    role: Role = "right" if first["is_hit"] else "wrong"
    point = Mark(on_image(Point(*first["point"])), role, "at first")
    looked_at = Mark(on_image(Box(*first["region"])), "zoom", "looked at again", LOOK_COLOUR)
    return [looked_at, point]


def is_right(answer: Answer) -> bool:
    """A hit, a refusal where nothing is there, or all of several wanted places."""
    if not answer["solution"]:
        return _refuses(answer)
    return bool(answer["is_hit"]) or answer.get("set_f1") == 1


def _verdict(answer: Answer) -> str:
    if _refuses(answer):
        return f"says that it is not there, {'which is so' if is_right(answer) else 'but it is'}"
    if answer.get("set_f1") is not None:
        return f"F1 of the set {answer['set_f1']:.2f}"
    if not answer["solution"] and answer["failure"] is None:
        return "answered a place, and nothing is there"
    if answer["failure"] is not None:
        return f"unreadable: {answer['failure'].replace('_', ' ')}"
    where = f"{answer['distance']:.1%} of the diagonal from the centre"
    if answer["is_hit"] is None:
        return f"answered, {where}"
    beyond = ", outside of the image" if answer["is_outside"] else ""
    return f"{'hit' if answer['is_hit'] else 'miss'}, {where}{beyond}"
