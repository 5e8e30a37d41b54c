"""The box of a row, in the ways in which people write one into a field of its own."""

import re
from collections.abc import Mapping
from typing import Any

from grpo_stream.records.formats.chats.conversations import solution_of
from grpo_stream.records.formats.chats.places import places_in
from grpo_stream.records.formats.forms import Form

_NUMBER = re.compile(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*")
_FOUR = re.compile(rf"{_NUMBER.pattern}(?:[,\s]{_NUMBER.pattern}){{3}}")
_MAX_DIGITS = 15
_MAX_CHARS = 200  # of a text of four numbers


def with_numbers(form: Form, record: dict[str, Any]) -> tuple[Form, dict[str, Any]]:
    """A record whose ``solution`` is numbers, if a field for a box can mean any.

    Understood are objects of corners or sides, ``"1, 2, 3, 4"``, numbers as text, a list of one
    and what an answer may be.
    """
    value = record.get("solution")
    if type(value) is list and len(value) > 1 and type(value[0]) in (int, float):
        return form, record  # nearly all
    value = _as_numbers(value)
    if isinstance(value, str) and len(value) <= _MAX_CHARS and _FOUR.fullmatch(value):
        value = [_number(one) for one in re.split(r"[,\s]+", value.strip())]
    if isinstance(value, list) and len(value) > 1 and isinstance(value[0], list):
        return form, record  # several
    if (places := places_in(value)) is not None:
        kind, value = places.kind, solution_of(places)
        box_format, coords = kind.box_format or form.box_format, kind.coords or form.coords
        warning = None if isinstance(record["solution"], list) else kind.warning
        form = form._replace(box_format=box_format, coords=coords, warning=warning)
        if kind.box_format is not None:
            form = form._replace(fields=f"{form.fields} ({kind.words})")
    return form, record | {"solution": value}


def _as_numbers(value: Any) -> Any:
    """``["1", "2", "3", "4"]`` and ``{"x1": "1", ...}`` with numbers; anything else as it is."""
    if isinstance(value, list) and len(value) == 1:
        return [_as_numbers(value[0])]
    if isinstance(value, list) and value and all(map(_is_number, value)):
        return [_number(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _number(one) if _is_number(one) else one for name, one in value.items()}
    return value


def _number(text: str) -> float:
    is_whole = text.strip().lstrip("+-").isdecimal() and len(text) <= _MAX_DIGITS
    return int(text) if is_whole else float(text)


def _is_number(value: object) -> bool:
    return isinstance(value, str) and bool(_NUMBER.fullmatch(value))
