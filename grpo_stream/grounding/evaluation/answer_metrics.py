"""What one scored answer adds to each figure of an evaluation, sampled and first answers too."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from grpo_stream.grounding.scores import ScoredAnswer

IOU_LEVEL = 0.5

Part = Callable[[ScoredAnswer], float | None]

_OF_THE_ANSWER = (
    *("text", "failure", "point", "box", "is_hit", "iou", "distance", "is_outside"),
    *("is_refusal", "set_f1", "more_places"),
)


def is_right(answer: ScoredAnswer) -> bool | None:
    """A hit, a refusal where nothing is there, or a whole set; None where that is not known."""
    if answer.wanted == "none":
        return answer.is_refusal
    return answer.is_hit if answer.set_f1 is None else answer.set_f1 == 1


METRICS: dict[str, Part] = {
    "point_accuracy": lambda answer: answer.is_hit,
    "mean_iou": lambda answer: answer.iou,
    "acc_50": lambda answer: None if answer.iou is None else answer.iou >= IOU_LEVEL,
    "with_refusals": is_right,
    "refusal_accuracy": lambda a: a.is_refusal if a.wanted == "none" else None,
    "false_refusals": lambda a: a.is_refusal if a.wanted != "none" and a.asks_place else None,
    "set_f1": lambda answer: answer.set_f1,
    "parse_failures": lambda a: (
        a.failure is not None and not a.is_refusal if a.asks_place else None
    ),
    "mean_distance": lambda answer: answer.distance,
    "outside_image": lambda answer: answer.is_outside if answer.asks_place else None,
}
"""Name of a figure and a sample's part in it; the figure is the mean over the samples that have
one.

* ``point_accuracy``: the answered point, or the answered box's centre, is in the true region (of
  several, in any); an answer that gives no place is a miss.
* ``mean_iou`` and ``acc_50``: intersection over union with the true region, and the share with
  at least 0.5 of it. Over all samples with one; an answer that is no valid box counts 0.
* ``with_refusals``: hits, right refusals and whole sets, over all samples; ``refusal_accuracy``:
  right refusals, over samples where nothing is there; ``false_refusals``: refusals, over all
  others. These three only where nothing is there in some sample.
* ``set_f1``: of all answered places, over samples where all of several are wanted.
* ``parse_failures``: the answer gives no place, and does not say that there is none.
* ``mean_distance``: from the answered point to the (nearest) true centre, as a share of the
  image's diagonal, at most 1. Over the answers that give a place.
* ``outside_image``: the answered point is outside of the image.

A sample without images that asks for no place has no part in any.
"""

REFUSAL_METRICS = ("with_refusals", "refusal_accuracy", "false_refusals")
"""Those that say nothing where something is there in every sample."""


def metrics_of(answers: Sequence[ScoredAnswer]) -> dict[str, Part]:
    """:data:`METRICS`, and ``pass_k`` for powers of 2 up to the number of sampled answers."""
    count = max((len(answer.sampled) for answer in answers), default=0)
    ks = sorted({*(2**n for n in range(count.bit_length()) if 2**n <= count), count} - {0})
    return METRICS | {f"pass_{k}": _pass_part(k) for k in ks}


def pass_at(k: int, num_right: int, num_samples: int) -> float:
    """The chance that ``k`` of the sampled answers, drawn without replacement, hold a right one.

    Formula: ``1 - C(n - c, k) / C(n, k)``. Source: Chen et al., 2021 (arXiv 2107.03374).
    """
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def with_first_look(
    answer: ScoredAnswer, first: ScoredAnswer, region: Sequence[float]
) -> ScoredAnswer:
    """An answer to a closer look, with what was answered at first.

    Args:
        answer: Of the second look, in the frame of the whole image.
        first: Of the whole image.
        region: What was looked at: a box in ``original``.
    """
    kept = {name: value for name, value in asdict(first).items() if name in _OF_THE_ANSWER}
    return replace(answer, first_look={**kept, "region": list(region)})


def first_look_of(answer: ScoredAnswer) -> ScoredAnswer:
    """What was answered before any closer look."""
    if answer.first_look is None:
        return answer
    kept = {name: value for name, value in answer.first_look.items() if name in _OF_THE_ANSWER}
    return replace(answer, **kept, first_look=None)


def with_samples(answer: ScoredAnswer, sampled: Sequence[ScoredAnswer]) -> ScoredAnswer:
    """The answer that was chosen, with all that it was chosen from."""
    short: list[Mapping[str, Any]] = [
        {"text": one.text, "point": one.point, "is_right": is_right(one)} for one in sampled
    ]
    return replace(answer, sampled=tuple(short))


def _pass_part(k: int) -> Part:
    def part(answer: ScoredAnswer) -> float | None:
        known = [one["is_right"] for one in answer.sampled if one["is_right"] is not None]
        if len(known) < k:
            return None
        return pass_at(k, sum(map(bool, known)), len(known))

    return part
