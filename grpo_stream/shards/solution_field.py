"""The field ``solution`` of a sample's JSON: numbers of one place, of several, or of none."""

import math
from typing import Any

from grpo_stream.errors import ShardFormatError
from grpo_stream.polygons import MIN_CORNERS
from grpo_stream.targets import WANTED_FIELD

_MAX_SHOWN = 80  # characters of a value in a message

Solution = tuple[float, ...]
"""A box ``(x1, y1, x2, y2)``, ends exclusive, a point ``(x, y)`` or a polygon of six numbers or
more, in pixels; empty where nothing is there."""


def as_solutions(solution: Any) -> tuple[Solution, ...]:
    """One place or several, from a tuple or from JSON, as several; none where nothing is there."""
    if len(solution) == 0:
        return ()
    if isinstance(solution[0], (list, tuple)):
        return tuple(tuple(numbers) for numbers in solution)
    return (tuple(solution),)


def check_solution(solution: object, wanted: object, where: str) -> int:
    """Checks the field and what is said to be wanted of it.

    That nothing is there must be said twice: an empty list by itself may be a fault of the data.

    Args:
        solution: From JSON.
        wanted: The field ``solution_wanted``; None without it. Words that mean nothing here are
            the record's own.
        where: Names the sample in error messages.

    Returns:
        How many places there are.

    Raises:
        ShardFormatError: cause ``bad_meta``.
    """
    if (solution == []) != (wanted == "none"):
        found = f"solution={short_value(solution)}"
        expected = f"[] goes with {WANTED_FIELD}='none', and nothing else does"
        raise ShardFormatError("bad_meta", f"{where}: {found}: {expected}")
    if solution == []:
        return 0
    several = [solution]
    if isinstance(solution, list) and isinstance(solution[0], list):
        several = solution
    for numbers in several:
        if not isinstance(numbers, list) or not _is_shape(len(numbers)):
            found = f"solution={short_value(solution)}"
            expected = "is not [x1, y1, x2, y2], [x, y] or [x, y, x, y, x, y]"
            raise ShardFormatError("bad_meta", f"{where}: {found} {expected}")
        if not all(map(_is_finite_number, numbers)):
            detail = f"solution={short_value(solution)} has no finite numbers"
            raise ShardFormatError("bad_meta", f"{where}: {detail}")
    return len(several)


def as_float(number: float) -> float:
    """The number as JSON writes it with a fraction, where that is exact.

    Written "1.0" even where they are whole: `datasets` takes a field's type from the first
    samples, and whole numbers there would cut the fractions off all others.
    """
    return float(number) if type(number) is int and abs(number) < 2**53 else number


def short_value(value: object) -> str:
    """``value`` for a message; never long, never failing."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python prints
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _is_shape(count: int) -> bool:
    return count in (2, 4) or (count >= 2 * MIN_CORNERS and count % 2 == 0)


def _is_finite_number(value: object) -> bool:
    if type(value) is float:
        return -math.inf < value < math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the range of float
        return False
