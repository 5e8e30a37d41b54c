"""The boxes and points of an answer: a text in one of the forms that say so, or JSON.

A text that merely holds numbers is none: ``It points to pages [4, 8, 15, 16].``
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from grpo_stream.records.formats.chats import actions
from grpo_stream.records.formats.rules import BoxFormat, Coords

_BOX_KEYS = (
    "labelled point",
    "bbox_2d", "box_2d", "point_2d", "bbox", "box", "point", "coordinate", "coordinates",
    "position", "start_box", "POINT", "click", "click_point", "bounding_box",
)  # fmt: skip
_CORNER_KEYS: tuple[tuple[tuple[str, ...], BoxFormat], ...] = (
    (("x1", "y1", "x2", "y2"), "xyxy"),
    (("xmin", "ymin", "xmax", "ymax"), "xyxy"),
    (("x_min", "y_min", "x_max", "y_max"), "xyxy"),
    (("x0", "y0", "x1", "y1"), "xyxy"),
    (("left", "top", "right", "bottom"), "xyxy"),
    (("x", "y", "width", "height"), "xywh"),
    (("x", "y", "w", "h"), "xywh"),
    (("left", "top", "width", "height"), "xywh"),
    (("cx", "cy", "w", "h"), "cxcywh"),
    (("x", "y"), "xyxy"),
)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_N = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(_N)
_BOX_TOKENS = re.compile(r"<\|box_start\|>(.*?)<\|box_end\|>", re.DOTALL)
_BOX_TAG = re.compile(r"<box>(.*?)</box>", re.DOTALL)
_QWENS = re.compile(r"\s*(?:\(|\[\s*\[)")
_PLACE_TAG = re.compile(r"<(point|bbox|click|coord|coordinate)>(.*?)</\1>", re.DOTALL)
_LIST = rf"\[\s*{_N}\s*(?:,\s*{_N}\s*){{1,3}}\]"
_LISTS = re.compile(rf"{_LIST}(?:(?:\s*[,;]\s*|\s+and\s+|\s+){_LIST})*")
_ONE_LIST = re.compile(_LIST)
_NAMED_LIST = re.compile(rf'"({"|".join(_BOX_KEYS)})"\s*:\s*({_LIST})')
_PAIR = rf"\(\s*{_N}\s*,\s*{_N}\s*\)"
_TUPLES = re.compile(rf"(?:{_PAIR}\s*,?\s*{_PAIR}|{_PAIR}|\(\s*{_N}(?:\s*,\s*{_N}){{3}}\s*\))")
_SAYS_BOX = re.compile(
    r"bounding[ -]?box|\bbbox|\bbox\b|coordinates?\b|\blocated at\b", re.IGNORECASE
)
_MAX_CHARS = 100_000  # of an answer; a longer one is no place


class Kind(NamedTuple):
    """What a place is written as."""

    words: str
    box_format: BoxFormat | None = None
    """Where the way of writing defines it."""
    coords: Coords | None = None
    warning: tuple[str, str] | None = None
    usual: tuple[BoxFormat, ...] = ("xyxy",)
    """Where it defines none."""


class Places(NamedTuple):
    """The boxes and points of an answer, numbers as they stand, and how they are written."""

    numbers: list[list[Any]]
    kind: Kind


_NUMBERS = Kind("numbers")
_TAG = Kind("<box>", "xyxy", "per_mille")
_BARE_TAG = Kind("<box>, bare")
_PAIR_KIND = Kind(
    "numbers",
    warning=("answer_pair", "two bare numbers where most answers are boxes: doubtful"),
)
NAMED: dict[str, Kind] = {
    "box_2d": Kind("box_2d", "yxyx", "per_mille"),
    "labelled point": Kind("point with label", usual=("xyxy", "yxyx")),
}
"""What a field's name says of the numbers in it."""

_BY_TOKENS = (
    (_BOX_TOKENS, Kind("<|box_start|>", "xyxy", "per_mille")),
    (re.compile(r"<\|det\|>(.*?)<\|/det\|>", re.DOTALL), Kind("<|det|>", "xyxy", "per_mille")),
    (re.compile(r"((?:<loc_\d+>){4})"), Kind("<loc_>", "xyxy", "per_mille")),
    (_BOX_TAG, _TAG),
)
"""The tokens of Qwen, DeepSeek-VL2, Florence-2 and InternVL; the second and third count to 999."""

PAIR_WARNING = "answer_pair"
"""The cause of the warning that a few bare pairs among boxes get."""
_ACTION = Kind("actions")
_PROSE = Kind(
    "prose",
    warning=("answer_prose", "the box is taken out of a sentence: see that it is one"),
)


def places_in(answer: object) -> Places | None:
    """The boxes and points of an answer; None where it has none in a form that says so.

    Text may be ``[x1, y1, x2, y2]``, ``[x, y]``, ``(x, y)`` or ``(x1, y1), (x2, y2)`` and nothing
    else; hold JSON with ``bbox_2d`` or its like, Qwen's and InternVL's tokens, ``<point>``, or the
    action of an agent (of which clicks have a target, scrolling and typing have none); or be a
    sentence that names a box or its coordinates. Where there is ``<answer>``, only that counts.
    """
    if not isinstance(answer, str):
        return _of_json(answer)
    if len(answer) > _MAX_CHARS:
        return None
    if found := _ANSWER.search(answer):
        answer = found.group(1)
    text = answer.strip()
    if (value := _parsed(text)) is not None:
        return _of_json(value)
    if found := _FENCE.search(text):
        return _of_json(_parsed(found.group(1))) or _of_text(found.group(1).strip())
    if found := _TOOL_CALL.search(text):
        return _of_json(_parsed(found.group(1)))
    return _of_text(text)


def _of_text(text: str) -> Places | None:
    is_action, numbers = actions.target_of(text)
    if is_action:
        return None if numbers is None else Places([numbers], _ACTION)
    for pattern, kind in _BY_TOKENS:
        if inner := pattern.findall(text):
            # Qwen writes (x1,y1),(x2,y2) and InternVL [[x1, y1, x2, y2]]: whoever writes bare
            # numbers may mean pixels.
            is_bare = kind is _TAG and not all(_QWENS.match(part) for part in inner)
            return _listed([_numbers(part) for part in inner], _BARE_TAG if is_bare else kind)
    if tags := _PLACE_TAG.findall(text):
        return _listed([_numbers(part) for _, part in tags], Kind(f"<{tags[0][0]}>"))
    if text.startswith("[[") and text.endswith("]]"):  # CogAgent's [[092,030,166,190]] is no JSON
        text = text[1:-1]
    if _LISTS.fullmatch(text):
        return _listed([_numbers(part) for part in _ONE_LIST.findall(text)], _NUMBERS)
    if _TUPLES.fullmatch(text):
        return _listed([_numbers(text)], _NUMBERS)
    if named := _NAMED_LIST.findall(text):
        return _listed([_numbers(part) for _, part in named], _kind(named[0][0]))
    return _of_sentence(text)


def _of_sentence(text: str) -> Places | None:
    lists = [_numbers(part) for part in _ONE_LIST.findall(text)]
    is_unit = all(len(n) == 4 and all(0 <= x <= 1 for x in n) and max(n) < 2 for n in lists)
    if lists and is_unit and any(isinstance(x, float) for x in lists[0]):
        return _listed(lists, _NUMBERS)
    if len(lists) == 1 and _SAYS_BOX.search(text):
        return _listed(lists, _PROSE)
    return None


def _of_json(value: object) -> Places | None:
    if isinstance(value, Mapping):
        return _of_object(value)
    if not isinstance(value, list):
        return None
    if _is_place(value):
        return Places([value], _NUMBERS if len(value) == 4 else _PAIR_KIND)
    found = [
        _of_object(item) if isinstance(item, Mapping)
        else Places([item], _NUMBERS) if _is_place(item)
        else None
        for item in value
    ]  # fmt: skip
    known = [places for places in found if places is not None]
    if not known or any(isinstance(item, (int, float, str)) for item in value):
        return None
    return Places([numbers for places in known for numbers in places.numbers], known[0].kind)


def _of_object(value: Mapping[str, Any]) -> Places | None:
    for name in ("name", "type"):
        if isinstance(said := value.get(name), str) and actions.has_no_place(said):
            return None
    for name in ("arguments", "action", "function"):  # of a tool call
        if isinstance(inner := value.get(name), Mapping):
            return _of_object(inner)
    action = value.get("action", value.get("action_type", value.get("ACTION")))
    if isinstance(action, str) and not actions.is_click(action):
        return None
    if "point" in value and "label" in value:  # Gemini's points are y first, others' are not
        value = {"labelled point": value["point"]}
    for key in _BOX_KEYS:
        if key not in value:
            continue
        inside = value[key]
        if isinstance(inside, str):
            numbers = _numbers(inside)
            return _listed([numbers], _kind(key)) if len(numbers) in (2, 4) else None
        found = _of_json(inside)
        return None if found is None else Places(found.numbers, _kind(key, found.kind))
    for names, box_format in _CORNER_KEYS:
        if all(_is_number(value.get(name)) for name in names):
            return Places([[value[name] for name in names]], Kind(", ".join(names), box_format))
    return None


def _kind(key: str, inner: Kind = _NUMBERS) -> Kind:
    if inner.box_format is not None:
        return inner
    return NAMED.get(key, Kind(key))


def _listed(boxes: list[list[Any]], kind: Kind) -> Places | None:
    if boxes and all(len(numbers) in (2, 4) for numbers in boxes):
        return Places(boxes, kind)
    return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _numbers(text: str) -> list[Any]:
    return [_number(found) for found in _NUMBER.findall(text)]


def _number(text: str) -> float:
    try:
        return int(text) if len(text) <= 15 else float(text)
    except ValueError:
        return float(text)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_place(value: object) -> bool:
    return isinstance(value, list) and len(value) in (2, 4) and all(map(_is_number, value))
