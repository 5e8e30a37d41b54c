"""Which answers of an evaluation are worth a picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
            lambda answer: len(answer["solution"]) == 4,
            _area_share,
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
            lambda answer: answer["failure"] is not None,
            lambda _: 0.0,
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


def _area_share(answer: Answer) -> float:
    x1, y1, x2, y2 = answer["solution"]
    width, height = answer["scales"]
    return float((x2 - x1) * (y2 - y1) / (width * height))


def _spread(answers: Sequence[Answer], places: Sequence[int]) -> list[int]:
    """Each image's first place, then each one's second, and so on."""
    met: dict[str, int] = {}
    turns = []
    for rank, place in enumerate(places):
        image = answers[place]["image"]
        met[image] = met.get(image, -1) + 1
        turns.append((met[image], rank, place))
    return [place for _, _, place in sorted(turns)]
