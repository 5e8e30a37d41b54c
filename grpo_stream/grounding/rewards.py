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

An answer that cannot be read earns 0. ``None`` means that a reward does not apply to a sample (trl
leaves it out of the sum): a kind of solution that it cannot score, or a true box without area.
"""

import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.grounding.answers import REASONS, Answer, ParseFailure, parse_answer
from grpo_stream.grounding.cases import Completion, Numbers, cases_of, completion_text

Rewards: TypeAlias = list[float | None]

logger = logging.getLogger(__name__)
_warned: set[tuple[str, ...]] = set()  # (reward, missing columns) that were told of


def accuracy_reward_coord(
    completions: Sequence[Completion],
    solution: Sequence[Numbers],
    scales: Sequence[Numbers] | None = None,
    model_size: Sequence[Numbers] | None = None,
    answer_frame: str | Sequence[str] | None = None,
    *,
    point_radius: float | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> Rewards:
    """1 if the predicted point, or the predicted box's centre, lies in the true box, else 0.

    Formula: ``1[x1 <= x < x2 and y1 <= y < y2]``, in {0, 1}. Source: the click accuracy of
    ScreenSpot (SeeClick, arXiv 2401.10935). A predicted box that is inverted or has no area is no
    answer: 0.

    Args:
        completions: See the module, as for the next four.
        solution: Boxes, or points (see ``point_radius``).
        scales: Original sizes.
        model_size: Resized sizes.
        answer_frame: Frames of the answers.
        point_radius: How near a true point is a hit, as a share of the image's diagonal
            (``functools.partial`` sets it; ``scales`` is needed). None: points are not scored.
        log_metric: trl's logger. Receives ``parse_failures/<reason>``, the share of completions
            that failed for each reason. All reasons are always logged, zeros too: trl averages
            over the calls that logged a name, so a share left out would not count as 0.
    """
    cases = cases_of(completions, solution, scales, model_size, answer_frame)
    if log_metric is not None and completions:
        failures = [case.answer.reason for case in cases if isinstance(case.answer, ParseFailure)]
        for reason in REASONS:
            log_metric(f"parse_failures/{reason}", failures.count(reason) / len(completions))
    return [case.accuracy(point_radius) for case in cases]


def iou_reward(
    completions: Sequence[Completion],
    solution: Sequence[Numbers],
    scales: Sequence[Numbers] | None = None,
    model_size: Sequence[Numbers] | None = None,
    answer_frame: str | Sequence[str] | None = None,
    **_: Any,
) -> Rewards:
    """Intersection over union of predicted and true box.

    Formula: ``|A & B| / |A | B|``, in [0, 1]; areas are real numbers, so an overlap of less than a
    pixel counts. 0 for an answer that is a point, or an inverted or empty box; None for a true
    point. Source: the Jaccard index, as PASCAL VOC uses it (Everingham et al., 2010).
    """
    cases = cases_of(completions, solution, scales, model_size, answer_frame)
    return [case.iou() for case in cases]


def distance_reward(
    completions: Sequence[Completion],
    solution: Sequence[Numbers],
    scales: Sequence[Numbers] | None = None,
    model_size: Sequence[Numbers] | None = None,
    answer_frame: str | Sequence[str] | None = None,
    **_: Any,
) -> Rewards:
    """How near the predicted point is to the true one, over the whole image.

    Formula: ``max(0, 1 - (d / dmax)^2)``, in [0, 1]: ``d`` is the distance from the predicted point
    (or centre) to the true point (or centre), ``dmax`` the distance from the latter to the farthest
    corner, both with x and y divided by the image's width and height. ``scales`` is needed.
    Source: the dense point reward of SE-GUI (arXiv 2505.12370), without its in-box term.
    """
    cases = cases_of(completions, solution, scales, model_size, answer_frame, need_scales=True)
    return [case.distance() for case in cases]


def gaussian_reward(
    completions: Sequence[Completion],
    solution: Sequence[Numbers],
    scales: Sequence[Numbers] | None = None,
    model_size: Sequence[Numbers] | None = None,
    answer_frame: str | Sequence[str] | None = None,
    **_: Any,
) -> Rewards:
    """A Gaussian hill over the true box: 1 at its centre, 0.61 at the middle of an edge.

    Formula: ``exp(-((dx / sx)^2 + (dy / sy)^2) / 2)``, in [0, 1], with ``dx, dy`` from the
    predicted point (or centre) to the true centre and ``sx, sy`` half of the true width and
    height. None for a true point. Source: the Gaussian point reward of GUI-G2 (arXiv 2507.15846).
    """
    cases = cases_of(completions, solution, scales, model_size, answer_frame)
    return [case.gaussian() for case in cases]


def format_reward(completions: Sequence[Completion], **_: Any) -> Rewards:
    """1 if the answer can be read as a point or box, else 0.

    In {0, 1}. Any form that :func:`~grpo_stream.grounding.answers.parse_answer` knows will do; no
    thoughts are asked for.
    """
    return [float(isinstance(parse_answer(completion_text(c)), Answer)) for c in completions]


REWARDS: dict[str, Callable[..., Rewards]] = {
    function.__name__: function
    for function in (
        accuracy_reward_coord,
        iou_reward,
        distance_reward,
        gaussian_reward,
        format_reward,
    )
}
"""The kit's reward functions by short name."""


def load_reward(name: str) -> Callable[..., Any]:
    """A reward function by short name, or any function as ``package.module:function``.

    Raises:
        ConfigError: no such short name, module or function.
    """
    if name in REWARDS:
        return REWARDS[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        known = ", ".join(REWARDS)
        raise ConfigError("reward_funcs", name, f"must be one of {known}, or package.module:name")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        hint = f"{module_name!r} cannot be imported ({error}); PYTHONPATH=. finds one beside you"
        raise ConfigError("reward_funcs", name, hint) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError("reward_funcs", name, f"{module_name!r} has no such function")
    return function  # type: ignore[no-any-return]


def named_reward(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` such that its errors name it and the sample; ``__name__`` is kept.

    A column that the function needs and that no record of the batch has is None throughout (a
    record's own field may be missing in a whole batch by chance); the first time, a warning lists
    the columns there are.

    After an error the completions are tried one by one (without logging) to find the sample, whose
    name is its entry in the column ``key``. A coroutine function is tried as a whole.

    Raises:
        GrpoStreamError: when called, for any exception that ``function`` raises.
    """
    name = _name_of(function)
    needed = _needed_columns(function)

    if inspect.iscoroutinefunction(function):

        async def call_async(**columns: Any) -> Any:
            columns = _filled(columns, needed, name)
            try:
                return await function(**columns)
            except Exception as error:
                raise _reward_error(name, columns.get("key"), error) from error

        call = call_async
    else:

        def call_sync(**columns: Any) -> Any:
            columns = _filled(columns, needed, name)
            try:
                return function(**columns)
            except Exception as error:
                keys = _failing_keys(function, columns)
                raise _reward_error(name, keys, error) from error

        call = call_sync
    if hasattr(function, "__name__"):
        return functools.wraps(function)(call)
    call.__name__ = name
    return call


def _needed_columns(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature is given what there is
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.default is p.empty]


def _filled(columns: dict[str, Any], needed: Sequence[str], name: str) -> dict[str, Any]:
    missing = [column for column in needed if column not in columns]
    if not missing or "completions" not in columns:
        return columns
    if (name, *missing) not in _warned:
        _warned.add((name, *missing))
        logger.warning(
            "reward %s asks for %s, which no record of this batch has (None is passed); it has %s",
            name,
            ", ".join(missing),
            ", ".join(sorted(columns)),
        )
    nothing = [None] * len(columns["completions"])
    return columns | dict.fromkeys(missing, nothing)


def _name_of(function: Callable[..., Any]) -> str:
    """Also of what has no ``__name__``: a functools.partial, an object with ``__call__``."""
    inner = getattr(function, "func", function)
    name = getattr(function, "__name__", None) or getattr(inner, "__name__", None)
    return str(name or type(inner).__name__)


def _failing_keys(function: Callable[..., Any], columns: dict[str, Any]) -> Sequence[Any] | None:
    keys = columns.get("key")
    if keys is None:
        return None
    quiet = {name: _ignore for name in ("log_metric", "log_extra") if name in columns}
    for row in range(len(keys)):
        one = {
            name: value[row : row + 1]
            if isinstance(value, list) and len(value) == len(keys)
            else value
            for name, value in columns.items()
        }
        try:
            function(**(one | quiet))
        except Exception:  # noqa: BLE001 - any failure marks the sample
            return [keys[row]]
    return list(keys)


def _ignore(*_: object) -> None:
    return None


def _reward_error(name: str, keys: Sequence[Any] | None, error: Exception) -> GrpoStreamError:
    where = ""
    if keys:
        distinct = list(dict.fromkeys(keys))
        shown = ", ".join(map(repr, distinct[:8])) + (", ..." if len(distinct) > 8 else "")
        where = f" on sample {shown}"
    return GrpoStreamError(
        f"reward function {name!r} failed{where}: {type(error).__name__}: {error}"
    )
