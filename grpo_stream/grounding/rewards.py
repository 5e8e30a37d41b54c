"""Reward functions for grounding, with trl's signature.

trl calls a reward function with one list per column, one entry per completion. These read:

* ``completions``: the text, or the conversation ``[{"role": "assistant", "content": text}]``;
* ``solution``: the truth in frame ``original``: 4 numbers of a box, 2 of a point, 6 or more of a
  polygon, a list of these, or an empty one where nothing is there;
* ``solution_wanted``: of several, ``any`` counts (also without this column) or ``all`` are wanted;
* ``answer_frame``: the frame that the answers are in (one name, or one per completion);
* ``scales``: (width, height) of the original image in pixels;
* ``model_size``: (width, height) of the resized image in pixels.

Answers are brought to ``original`` before anything is compared. Nothing is guessed: a frame or
size that is needed and missing is a :class:`~grpo_stream.errors.ConfigError`. Answers in
``original`` need no size, those in ``per_mille`` need ``scales``, those in ``model`` need both.

An answer that cannot be read earns the least: 0, of ``giou_reward`` -1. ``None`` means that a
reward does not apply to a sample (trl leaves it out of the sum): a kind of solution that it cannot
score, or a true box without area. Where any of several places counts, an answer earns what the
best of them gives. Where all are wanted, or nothing is there, only ``set_reward`` and
``refusal_reward`` apply.

All but ``length_penalty`` hand trl's ``log_metric`` the shares of parse failures by reason; see
:func:`~grpo_stream.grounding.cases.cases_of`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.cases import Case, cases_of
from grpo_stream.grounding.reward_calls import (
    import_function,
    named_reward,
    split_call,
    with_parameters,
    with_template,
)
from grpo_stream.grounding.text_rewards import Rewards, format_reward, length_penalty

__all__ = [
    "REWARDS",
    "accuracy_reward_coord",
    "answer_count_reward",
    "distance_reward",
    "format_reward",
    "gaussian_reward",
    "giou_reward",
    "iou_reward",
    "length_penalty",
    "load_reward",
    "named_reward",
    "refusal_reward",
    "set_reward",
    "with_template",
]

Reward: TypeAlias = Callable[..., Rewards]


_WITH_PLAIN_TRL = """.
PersonalizedGRPOTrainer passes the column. With trl's own trainer, give the frame yourself:
    from functools import partial
    reward_funcs = [partial({name}, answer_frame="original")]
"original" is right where the model answers in pixels of the very image that the solution is in: no
resize on the way, by the processor neither. Of a resized image the frame is "model", with the
columns scales and model_size; of a model that answers in 0-1000 it is "per_mille", with scales."""


def _reward(of_cases: Reward) -> Reward:
    """A function of cases, called as trl does: the columns of ``cases_of`` and its own keywords."""
    _, *keywords = inspect.signature(of_cases).parameters.values()
    *columns, others = inspect.signature(cases_of).parameters.values()
    names = [keyword.name for keyword in keywords]

    @functools.wraps(of_cases)
    def reward(*args: Any, **given: Any) -> Rewards:
        own = {name: given.pop(name) for name in names if name in given}
        try:
            cases = cases_of(*args, **given)
        except ConfigError as error:
            if (error.field, error.value) != ("answer_frame", None):
                raise
            expected = error.expected + _WITH_PLAIN_TRL.format(name=of_cases.__name__)
            raise ConfigError("answer_frame", None, expected) from error
        return of_cases(cases, **own)

    signature = inspect.Signature([*columns, *keywords, others], return_annotation=Rewards)
    reward.__signature__ = signature  # type: ignore[attr-defined]
    return reward


@_reward
def accuracy_reward_coord(cases: Sequence[Case], *, point_radius: float | None = None) -> Rewards:
    """1 if the predicted point, or the predicted box's centre, is in the true region, else 0.

    Formula: ``1[x1 <= x < x2 and y1 <= y < y2]``, of a polygon the even-odd rule, in {0, 1}.
    Source: the click accuracy of ScreenSpot (SeeClick, arXiv 2401.10935); for polygons that of
    OSWorld-G (arXiv 2505.13227). A predicted box that is inverted or has no area is no answer: 0.

    Args:
        cases: Completions and truths, from trl's columns.
        point_radius: How near a true point is a hit, as a share of the image's diagonal
            (``functools.partial`` sets it; ``scales`` is needed). None: points are not scored.

    Raises:
        ConfigError: ``point_radius`` is not positive.
    """
    _check_radius(point_radius)
    return [case.accuracy(point_radius) for case in cases]


@_reward
def iou_reward(cases: Sequence[Case]) -> Rewards:
    """Intersection over union of the predicted box with the true box or polygon.

    Formula: ``|A & B| / |A | B|``, in [0, 1]; areas are real numbers, so an overlap of less than a
    pixel counts. 0 for an answer that is a point, or an inverted or empty box; None for a true
    point. Source: the Jaccard index, as PASCAL VOC uses it (Everingham et al., 2010).
    """
    return [case.iou() for case in cases]


@_reward
def giou_reward(cases: Sequence[Case]) -> Rewards:
    """Generalised intersection over union: it also tells far misses from near ones.

    Formula: ``IoU - (|C| - |A | B|) / |C|`` with ``C`` the least box around ``A`` and ``B``, in
    [-1, 1]: 1 for the very box, below 0 for boxes apart, towards -1 with their distance. -1 for an
    answer that is a point, or an inverted or empty box, or cannot be read; None for a true point.
    Source: Rezatofighi et al., 2019 (arXiv 1902.09630).
    """
    return [case.giou() for case in cases]


@_reward
def distance_reward(cases: Sequence[Case]) -> Rewards:
    """How near the predicted point is to the true one, over the whole image.

    Formula: ``max(0, 1 - (d / dmax)^2)``, in [0, 1]: ``d`` is the distance from the predicted point
    (or centre) to the true point (or centre), ``dmax`` the distance from the latter to the farthest
    corner, both with x and y divided by the image's width and height. ``scales`` is needed.
    Source: the dense point reward of SE-GUI (arXiv 2505.12370), without its in-box term.
    """
    return [case.distance() for case in cases]


@_reward
def gaussian_reward(cases: Sequence[Case]) -> Rewards:
    """A Gaussian hill over the true box: 1 at its centre, 0.61 at the middle of an edge.

    Formula: ``exp(-((dx / sx)^2 + (dy / sy)^2) / 2)``, in [0, 1], with ``dx, dy`` from the
    predicted point (or centre) to the true centre and ``sx, sy`` half of the true width and
    height, of a polygon those of its bounds. None for a true point. Source: the Gaussian point
    reward of GUI-G2 (arXiv 2507.15846).
    """
    return [case.gaussian() for case in cases]


@_reward
def refusal_reward(cases: Sequence[Case], *, penalty: float = 0.0) -> Rewards:
    """1 for saying that nothing is there where that is so, 0 for anything else there.

    Formula: ``1[refuses]`` where nothing is there, in {0, 1}; elsewhere ``-penalty`` for a refusal
    and None for anything else, so that what a place is worth is left to the other rewards. Source:
    the refusals of OSWorld-G (arXiv 2505.13227), scored the same.

    Args:
        cases: Completions and truths, from trl's columns.
        penalty: What a refusal costs where something is there; 0: None is given, as for any
            other text.

    Raises:
        ConfigError: ``penalty`` is negative.
    """
    if not penalty >= 0:
        raise ConfigError("penalty", penalty, "must be 0 or more, for example 0.5")
    elsewhere = [-penalty if case.is_refusal and penalty else None for case in cases]
    return [
        float(case.is_refusal) if case.target.is_absent else other
        for case, other in zip(cases, elsewhere, strict=True)
    ]


@_reward
def set_reward(
    cases: Sequence[Case],
    *,
    by: str = "iou",
    threshold: float = 0.5,
    point_radius: float | None = None,
) -> Rewards:
    """How well all answered places are all wanted ones: F1 of a one-to-one matching.

    Formula: ``2 m / (a + t)``, in [0, 1], for ``a`` answers and ``t`` true places, ``m`` of which
    can be paired at most so that each pair fits and no place is in two. A pair fits ``by`` IoU of
    at least ``threshold``, or ``by`` a hit of the answered point or centre; true points only by a
    hit. Of a text the first 100 answers count. None where any of several places counts, and where
    nothing is there. Source: the F1 of generalised referring expression comprehension (GREC,
    arXiv 2308.16182), at IoU 0.5 there.

    Args:
        cases: Completions and truths, from trl's columns.
        by: ``iou`` or ``hit``.
        threshold: Least IoU of a pair, above 0 and at most 1.
        point_radius: See ``accuracy_reward_coord``; needed with true points, ``by`` a hit.

    Raises:
        ConfigError: ``by`` is neither, or ``threshold`` or ``point_radius`` is out of range.
    """
    if by not in ("iou", "hit"):
        raise ConfigError("by", by, "must be 'iou' or 'hit'")
    if not 0 < threshold <= 1:
        raise ConfigError("threshold", threshold, "must be above 0 and at most 1, for example 0.5")
    _check_radius(point_radius)
    return [case.set_f1(by, threshold, point_radius) for case in cases]


@_reward
def answer_count_reward(cases: Sequence[Case], *, point_radius: float | None = None) -> Rewards:
    """How soon a text that ranks several answers hits: what was found, by what looking cost.

    Formula: ``1 / sqrt(n k)`` if of ``n`` answers the ``k``-th is the first to hit, else
    ``-1 / n``, in [-1, 1]; -1 without an answer. So one right answer earns the most, one wrong
    answer the least, and further candidates pay where the first is doubtful. None as for
    ``accuracy_reward_coord``. Source: the adaptive exploration reward of InfiGUI-G1 (arXiv
    2508.05731), without its penalty for answers in a straight line.

    Args:
        cases: Completions and truths, from trl's columns.
        point_radius: See ``accuracy_reward_coord``.

    Raises:
        ConfigError: ``point_radius`` is not positive.
    """
    _check_radius(point_radius)
    rewards: Rewards = []
    for case in cases:
        rank, count = case.first_hit(point_radius), len(case.answers.places)
        if rank is None or rank == 0:
            rewards.append(None if rank is None else -1 / max(1, count))
        else:
            rewards.append(1 / math.sqrt(count * rank))
    return rewards


def _check_radius(point_radius: float | None) -> None:
    if point_radius is not None and not point_radius > 0:
        raise ConfigError("point_radius", point_radius, "must be above 0, for example 0.05")


REWARDS: dict[str, Callable[..., Rewards]] = {
    function.__name__: function
    for function in (
        accuracy_reward_coord,
        iou_reward,
        giou_reward,
        distance_reward,
        gaussian_reward,
        refusal_reward,
        set_reward,
        answer_count_reward,
        format_reward,
        length_penalty,
    )
}
"""The kit's reward functions by short name."""


def load_reward(name: str) -> Callable[..., Any]:
    """A reward function by short name, or any function as ``package.module:function``.

    Parameters may follow in brackets: ``length_penalty(num_max_tokens=128)``.

    Raises:
        ConfigError: no such short name, module or function, or parameters that cannot be.
    """
    path, parameters = split_call(name)
    if path in REWARDS:
        reward = with_parameters(REWARDS[path], parameters, name)
        # On no completions at all, which tells what its values are worth before a run starts.
        reward(completions=[], completion_ids=[], solution=[], scales=[], answer_frame="original")
        return reward
    if ":" not in path:
        known = ", ".join(REWARDS)
        raise ConfigError("reward_funcs", name, f"must be one of {known}, or package.module:name")
    return with_parameters(import_function(path), parameters, name)
