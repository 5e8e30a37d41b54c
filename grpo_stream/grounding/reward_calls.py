"""Reward functions as users write them: by name with parameters, or their own; errors name them."""

import ast
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from grpo_stream.errors import ConfigError, GrpoStreamError

logger = logging.getLogger(__name__)
_warned: set[tuple[str, ...]] = set()  # (reward, missing columns) that were told of


def split_call(text: str) -> tuple[str, dict[str, Any]]:
    """``"near(radius=4)"`` to ``("near", {"radius": 4})``; a name alone has no parameters.

    Raises:
        ConfigError: what is in the brackets is not ``name=value`` with plain values.
    """
    name, bracket, inner = text.partition("(")
    if not bracket:
        return text, {}
    try:
        call = ast.parse(f"f({inner}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or None in {k.arg for k in call.keywords}:
            raise ValueError("not name=value")
        return name, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        expected = "parameters must be plain, as in accuracy_reward_coord(point_radius=0.05)"
        raise ConfigError("reward_funcs", text, f"{expected} ({error})") from error


def import_function(path: str) -> Callable[..., Any]:
    """The function at ``package.module:function``.

    Raises:
        ConfigError: no such module or function.
    """
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        hint = f"{module_name!r} cannot be imported ({error}); PYTHONPATH=. finds one beside you"
        raise ConfigError("reward_funcs", path, hint) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError("reward_funcs", path, f"{module_name!r} has no such function")
    return function  # type: ignore[no-any-return]


def with_parameters(
    function: Callable[..., Any], parameters: dict[str, Any], text: str
) -> Callable[..., Any]:
    """``function`` with its keyword parameters set, after a look at their names.

    Raises:
        ConfigError: the function has no parameter of such a name.
    """
    if not parameters:
        return function
    own = inspect.signature(function).parameters.values()
    # The columns have names too; what a user sets is keyword-only, or has a default.
    names = [p.name for p in own if p.kind is p.KEYWORD_ONLY]
    names = names or [p.name for p in own if p.default is not p.empty]
    names = [name for name in names if name != "log_metric"]
    unknown = [name for name in parameters if name not in names]
    if unknown:
        known = ", ".join(names) or "none"
        raise ConfigError("reward_funcs", text, f"has no parameter {unknown[0]!r}; it has: {known}")
    return functools.partial(function, **parameters)


def with_template(function: Callable[..., Any], template: object) -> Callable[..., Any]:
    """``function`` with the run's template, where it asks for one that nobody has set.

    It asks by a keyword-only parameter ``template`` whose default is None, as ``format_reward``
    does.
    """
    try:
        parameter = inspect.signature(function).parameters.get("template")
    except (TypeError, ValueError):  # a callable without a signature
        return function
    if parameter is None or parameter.kind is not parameter.KEYWORD_ONLY:
        return function
    if parameter.default is not None:
        return function
    return functools.partial(function, template=template)


def named_reward(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` such that its errors name it and the sample; ``__name__`` is kept.

    A column that the function needs and that no record of the batch has is None throughout (a
    record's own field may be missing in a whole batch by chance); the first time, a warning lists
    the columns there are.

    What it returns must be one number or None per completion.

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
                return _checked(await function(**columns), columns)
            except Exception as error:
                raise _reward_error(name, columns.get("key"), error) from error

        call = call_async
    else:

        def call_sync(**columns: Any) -> Any:
            columns = _filled(columns, needed, name)
            try:
                return _checked(function(**columns), columns)
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


def _checked(values: Any, columns: dict[str, Any]) -> Any:
    """``values`` if they are what trl can add up: it would fail on others without naming them."""
    num_completions = len(columns["completions"]) if "completions" in columns else len(values)
    if not hasattr(values, "__len__") or len(values) != num_completions:
        count = len(values) if hasattr(values, "__len__") else type(values).__name__
        raise TypeError(f"it returned {count} for {num_completions} completions, not a value each")
    for value in values:
        if value is not None and not hasattr(value, "__float__"):
            raise TypeError(f"it returned {value!r}, which is neither a number nor None")
    return values


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
            _checked(function(**(one | quiet)), one)
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
