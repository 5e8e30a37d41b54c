"""Reward functions for grounding, with trl's signature.

trl calls a reward function with one list per column, one entry per completion. These read:

* ``completions``: the text, or the conversation ``[{"role": "assistant", "content": text}]``;
* ``solution``: the truth in frame ``original``: 4 numbers of a box or 2 of a point;
* ``answer_frame``: the frame that the answers are in (one name, or one per completion);
* ``scales``: (width, height) of the original image in pixels;
* ``model_size``: (width, height) of the resized image in pixels.

Answers are brought to ``original`` before anything is compared. Nothing is guessed: a frame or
size that is needed and missing is a :class:`~grpo_stream.errors.ConfigError`. Answers in
``original`` need no size, those in ``per_mille`` need ``scales``, those in ``model`` need both.

An answer that cannot be read earns the least: 0, of ``giou_reward`` -1. ``None`` means that a
reward does not apply to a sample (trl leaves it out of the sum): a kind of solution that it cannot
score, or a true box without area.

All but ``length_penalty`` hand trl's ``log_metric`` the shares of parse failures by reason; see
:func:`~grpo_stream.grounding.cases.cases_of`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.answers import Answer, parse_answer
from grpo_stream.grounding.cases import (
    Case,
    Completion,
    LogMetric,
    cases_of,
    completion_text,
    log_failures,
)
from grpo_stream.grounding.prompts import PromptTemplate, load_template
from grpo_stream.grounding.reward_calls import (
    import_function,
    named_reward,
    split_call,
    with_parameters,
    with_template,
)

__all__ = [
    "REWARDS",
    "accuracy_reward_coord",
    "distance_reward",
    "format_reward",
    "gaussian_reward",
    "giou_reward",
    "iou_reward",
    "length_penalty",
    "load_reward",
    "named_reward",
    "with_template",
]

Rewards: TypeAlias = list[float | None]
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
    """1 if the predicted point, or the predicted box's centre, is in the true box, else 0.

    Formula: ``1[x1 <= x < x2 and y1 <= y < y2]``, in {0, 1}. Source: the click accuracy of
    ScreenSpot (SeeClick, arXiv 2401.10935). A predicted box that is inverted or has no area is no
    answer: 0.

    Args:
        cases: Completions and truths, from trl's columns.
        point_radius: How near a true point is a hit, as a share of the image's diagonal
            (``functools.partial`` sets it; ``scales`` is needed). None: points are not scored.

    Raises:
        ConfigError: ``point_radius`` is not positive.
    """
    if point_radius is not None and not point_radius > 0:
        raise ConfigError("point_radius", point_radius, "must be above 0, for example 0.05")
    return [case.accuracy(point_radius) for case in cases]


@_reward
def iou_reward(cases: Sequence[Case]) -> Rewards:
    """Intersection over union of predicted and true box.

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
    height. None for a true point. Source: the Gaussian point reward of GUI-G2 (arXiv 2507.15846).
    """
    return [case.gaussian() for case in cases]


def format_reward(
    completions: Sequence[Completion],
    *,
    template: str | PromptTemplate | None = None,
    log_metric: LogMetric | None = None,
    **_: Any,
) -> Rewards:
    """1 if the completion has the form that was asked for, else 0.

    In {0, 1}. The text must be of the template's form and nothing else, see
    :meth:`~grpo_stream.grounding.prompts.PromptTemplate.is_followed_by`. Without a template any
    form will do that :func:`~grpo_stream.grounding.answers.parse_answer` knows, with or without
    thoughts. Source: the format reward of DeepSeek-R1 (arXiv 2501.12948), for answers that are
    places.

    Args:
        completions: See the module.
        template: A template, or its name or YAML file; ``"any"`` for none. The trainer sets the
            run's own where nothing is set (:func:`with_template`).
        log_metric: trl's logger, see the module.

    Raises:
        ConfigError: there is no such template.
    """
    texts = [completion_text(completion) for completion in completions]
    answers = [parse_answer(text) for text in texts]
    if log_metric is not None and answers:
        log_failures(answers, log_metric)
    if template is None or template == "any":
        return [float(isinstance(answer, Answer)) for answer in answers]
    asked = load_template(template) if isinstance(template, str) else template
    return [float(asked.is_followed_by(text)) for text in texts]


def length_penalty(
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    num_free_tokens: int = 64,
    num_max_tokens: int = 256,
    **_: Any,
) -> Rewards:
    """0 up to a length that costs nothing, then down in a straight line to -1.

    Formula: ``-min(1, max(0, (n - num_free_tokens) / (num_max_tokens - num_free_tokens)))`` for a
    completion of ``n`` tokens, in [-1, 0]. Source: the soft overlong punishment of DAPO (arXiv
    2503.14476, equation 13; its L_max is ``num_max_tokens``, its L_cache the difference).

    Args:
        completions: Used for their number alone.
        completion_ids: Token ids of every completion, without padding; trl passes them.
        num_free_tokens: Longest completion that costs nothing.
        num_max_tokens: Shortest completion that costs 1.

    Raises:
        ConfigError: ``completion_ids`` is missing or of another length, or ``num_max_tokens`` is
            not above ``num_free_tokens``, or that is negative.
    """
    if num_free_tokens < 0:
        raise ConfigError("num_free_tokens", num_free_tokens, "must be 0 or more, for example 64")
    if num_max_tokens <= num_free_tokens:
        expected = f"must be above num_free_tokens, for example {4 * num_free_tokens or 256}"
        raise ConfigError("num_max_tokens", num_max_tokens, expected)
    if completion_ids is None or len(completion_ids) != len(completions):
        found = None if completion_ids is None else f"{len(completion_ids)} entries"
        expected = f"must be the token ids of all {len(completions)} completions"
        raise ConfigError("completion_ids", found, expected)
    span = num_max_tokens - num_free_tokens
    over = [max(0, len(ids) - num_free_tokens) / span for ids in completion_ids]
    return [0.0 if share == 0 else -min(1.0, share) for share in over]


REWARDS: dict[str, Callable[..., Rewards]] = {
    function.__name__: function
    for function in (
        accuracy_reward_coord,
        iou_reward,
        giou_reward,
        distance_reward,
        gaussian_reward,
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
