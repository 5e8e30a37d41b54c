"""From scored answers to figures: overall, by size of target and by the records' own fields."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.evaluation.answer_metrics import REFUSAL_METRICS, metrics_of
from grpo_stream.grounding.scores import ABSENT_SIZE, FAILURES, POINT_SIZE, SIZES, ScoredAnswer
from grpo_stream.report.intervals import bootstrap_intervals, wilson_interval

DEFAULT_FIELDS = (
    *("input_file", "source", "data_source", "dataset_name", "split"),
    *("platform", "category", "application", "app_name", "group"),
    *("role", "element.role", "element_type", "ui_type", "data_type", "GUI_types"),
    *("grounding_type", "gt_type", "box_type", "language"),
    # As ScreenSpot, ScreenSpot-Pro and MMBench-GUI report.
    *("input_file+data_type", "platform+data_type", "group+ui_type", "platform+grounding_type"),
)
"""Fields of records that results are told apart by where nobody names any; ``a+b``: by both."""
SIZE_SLICE = "size of target"
"""Name of the slices by :data:`~.scores.SIZES`."""
NO_VALUE = "(none)"
"""Stands for a field that a record lacks."""

_MOST_DEFAULT_VALUES = 40  # a field of more is a name or a number, not a kind

_BOX_METRICS = ("mean_iou", "acc_50")
_WITHOUT_WILSON = ("mean_distance",)

Figures = dict[str, Any]
"""``num_samples``, ``num_images``, and for each of :func:`~.metrics_of` a mapping of ``value``,
``low``, ``high`` (95 % interval) and ``num_samples`` (that it is the mean of), or None where it
does not apply. ``low`` and ``high`` are None where one image tells nothing of their spread."""


def evaluation_figures(
    answers: Sequence[ScoredAnswer],
    fields: Sequence[str] | None = None,
    *,
    asks_boxes: bool,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of an evaluation.

    Args:
        answers: At least one.
        fields: The fields to slice by; None for those of :data:`DEFAULT_FIELDS` that have from 2 to
            40 values.
        asks_boxes: The prompt asks for boxes. If not, and if no answer is one, the figures of
            boxes do not apply.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``figures`` (:data:`Figures` of all), ``failures`` (number of samples by reason) and
        ``slices``: for :data:`SIZE_SLICE` and each field a list of :data:`Figures`, each with its
        value as ``name``; sizes in their order with their limits as ``label``, values by falling
        number of samples.
    """
    table = _Table(answers, asks_boxes or any(answer.box is not None for answer in answers))

    def figures(places: NDArray[np.int64]) -> Figures:
        return table.figures(places, num_resamples, seed)

    failures = Counter(answer.failure for answer in answers)
    chosen = default_fields(answers) if fields is None else fields
    sizes = (ABSENT_SIZE, POINT_SIZE, *(name for name, _ in SIZES))
    slices = {SIZE_SLICE: _split([[answer.size] for answer in answers], sizes)}
    for name in chosen:
        words = [value_names(answer.fields.get(name)) for answer in answers]
        counted = Counter(word for several in words for word in several)
        by_number = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
        slices[name] = _split(words, [word for word, _ in by_number])
    return {
        "figures": figures(np.arange(len(answers))),
        "failures": {reason: failures[reason] for reason in FAILURES if failures[reason]},
        "slices": {
            name: [{**_names(name, word), **figures(places)} for word, places in parts]
            for name, parts in slices.items()
        },
    }


def compare_answers(
    answers: Sequence[ScoredAnswer],
    others: Sequence[ScoredAnswer],
    *,
    asks_boxes: bool,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """How ``answers`` differ from ``others`` on the same samples, paired by key.

    Samples that only one of them could read are left out.

    Args:
        answers: Of one policy.
        others: Of another one.
        asks_boxes: As for :func:`evaluation_figures`.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``here`` and ``there`` (:data:`Figures` of the two), ``differences`` (of the paired
        differences, here minus there), ``num_gained`` and ``num_lost`` (hits here that are misses
        there, and the reverse).

    Raises:
        ConfigError: they have no sample in common.
    """
    by_key = {other.key: other for other in others}
    ours = [answer for answer in answers if answer.key in by_key]
    if not ours:
        raise ConfigError("compare", f"{len(others)} answers", "must be of the same samples")
    theirs = [by_key[answer.key] for answer in ours]
    here, there = (
        _Table(side, asks_boxes or any(answer.box is not None for answer in side))
        for side in (ours, theirs)
    )
    places = np.arange(len(ours))
    differences = _Table(ours, applies_boxes=True)
    shared = [name for name in here.names if name in there.names]
    differences.names = shared
    differences.values = here.column(shared) - there.column(shared)
    return {
        "here": here.figures(places, num_resamples, seed),
        "there": there.figures(places, num_resamples, seed),
        "differences": differences.figures(places, num_resamples, seed, is_share=False),
        "num_gained": sum(
            bool(a.is_hit) > bool(b.is_hit) for a, b in zip(ours, theirs, strict=True)
        ),
        "num_lost": sum(bool(a.is_hit) < bool(b.is_hit) for a, b in zip(ours, theirs, strict=True)),
    }


def default_fields(answers: Sequence[ScoredAnswer]) -> list[str]:
    """Those of :data:`DEFAULT_FIELDS` that tell the samples apart, by themselves or together."""
    found: list[str] = []
    for name in DEFAULT_FIELDS:
        several, *more = name.split("+")
        if more and not {several, *more} <= set(found):
            continue
        words = {word for a in answers for word in value_names(a.fields.get(name))}
        if 2 <= len(words) <= _MOST_DEFAULT_VALUES:
            found.append(name)
    return found


def pick_fields(extra: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of the named fields that a record has.

    ``a.b`` is the field b of the field a; ``a+b`` both fields, their values in one text.
    """
    found = {}
    for name in names:
        parts = [name] if name in extra else name.split("+")
        values = [_field(extra, part) for part in parts]
        if any(value is not None for value in values):
            found[name] = values[0] if len(values) == 1 else ", ".join(map(value_name, values))
    return found


def _field(extra: Mapping[str, Any], name: str) -> Any:
    value: Any = extra
    for word in [name] if name in extra else name.split("."):
        value = value.get(word) if isinstance(value, Mapping) else None
    return value


def value_names(value: Any) -> list[str]:
    """The names of the slices that a field's value is in: of a list of texts, each is one."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, str) for one in value):
        return list(dict.fromkeys(value))
    return [value_name(value or None) if isinstance(value, (list, tuple)) else value_name(value)]


def value_name(value: Any) -> str:
    """The value of a field as the name of a slice."""
    if value is None:
        return NO_VALUE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class _Table:
    """The answers as columns: one row per sample, one column per metric."""

    def __init__(self, answers: Sequence[ScoredAnswer], applies_boxes: bool) -> None:
        metrics = metrics_of(answers)
        self.names = list(metrics)
        rows = [[_number(part(answer)) for part in metrics.values()] for answer in answers]
        self.values = np.array(rows, dtype=np.float64)
        blank = [] if applies_boxes else [*_BOX_METRICS]
        if not any(answer.wanted == "none" for answer in answers):
            blank += REFUSAL_METRICS
        self.values[:, [self.names.index(name) for name in blank]] = math.nan
        images = {image: number for number, image in enumerate({a.image: 0 for a in answers})}
        self.images = np.array([images[answer.image] for answer in answers])

    def column(self, names: Sequence[str]) -> NDArray[np.float64]:
        """The values of some metrics, in this order."""
        chosen: NDArray[np.float64] = self.values[:, [self.names.index(name) for name in names]]
        return chosen

    def figures(
        self, places: NDArray[np.int64], num_resamples: int, seed: int, *, is_share: bool = True
    ) -> Figures:
        values, images = self.values[places], self.images[places]
        num_images = len(np.unique(images))
        ends = bootstrap_intervals(values, images, num_resamples=num_resamples, seed=seed)
        found: Figures = {"num_samples": len(values), "num_images": num_images}
        for column, name in enumerate(self.names):
            known = values[~np.isnan(values[:, column]), column]
            if not len(known):
                found[name] = None
                continue
            low, high = ends[column]
            is_alike = known.min() == known.max() and known[0] in (0, 1)
            if is_alike and is_share and name not in _WITHOUT_WILSON:
                # Resamples of equal values are equal, however few they are.
                low, high = wilson_interval(round(known[0]) * num_images, num_images)
            is_sure = num_images > 1
            found[name] = {
                "value": float(known.mean()),
                "low": float(low) if is_sure else None,
                "high": float(high) if is_sure else None,
                "num_samples": len(known),
            }
        return found


def _split(
    words: Sequence[Sequence[str]], order: Sequence[str]
) -> list[tuple[str, NDArray[np.int64]]]:
    """The rows of each word that occurs."""
    places: dict[str, list[int]] = {}
    for row, several in enumerate(words):
        for word in several:
            places.setdefault(word, []).append(row)
    return [(word, np.array(places[word])) for word in order if word in places]


def _names(slices: str, word: str) -> dict[str, str]:
    if slices != SIZE_SLICE or word in (POINT_SIZE, ABSENT_SIZE):
        return {"name": word}
    names = [name for name, _ in SIZES]
    place = names.index(word)
    limit = SIZES[max(0, place - 1)][1] if word == names[-1] else SIZES[place][1]
    side = "from" if word == names[-1] else "below"
    return {"name": word, "label": f"{word}, {side} {100 * limit:g}%"}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
