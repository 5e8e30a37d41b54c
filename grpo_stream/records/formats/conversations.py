"""VLM-R1's and LLaVA's conversations: every question whose answer is a box is a record.

``{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>Where is the key?"},
{"from": "gpt", "value": "[12, 5, 40, 60]"}]}``; the names ``messages``, ``images``, ``role``,
``content``, ``user`` and ``assistant`` are understood as well. VLM-R1's numbers are pixels,
LLaVA's are 0-1.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from grpo_stream.errors import RecordError

_CONVERSATION_KEYS = ("conversations", "messages")
_IMAGE_KEYS = ("image", "images")
_ASKING, _ANSWERING = ("human", "user"), ("gpt", "assistant")
_BOX_KEYS = ("bbox_2d", "bbox", "box", "box_2d", "point_2d", "point")
_PLACEHOLDER = re.compile(r"[ \t]*<image>[ \t]*\n?")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PAIR = rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)"
_TWO_CORNERS = re.compile(rf"{_PAIR}\s*,?\s*{_PAIR}")
_POINT = re.compile(_PAIR)
_LIST = re.compile(rf"\[\s*({_NUMBER}(?:\s*,\s*{_NUMBER}){{1,3}})\s*\]")


def conversation_records(row: Mapping[str, Any]) -> Iterator[dict[str, Any] | RecordError]:
    """The records of one conversation.

    Turns without a box in the answer are passed over. All other fields of the conversation are
    kept in each record, with ``turn``, counted from 0, where there are several.

    Yields:
        Records with ``image``, ``prompt`` and ``solution`` (a list of boxes where the answer
        holds several), or one RecordError, causes ``conversation_missing`` and
        ``answer_no_box``.
    """
    turns = list(_turns(row))
    if not turns:
        detail = f"no question and answer in {' or '.join(_CONVERSATION_KEYS)}"
        yield RecordError("conversation_missing", detail)
        return
    taken = (*_CONVERSATION_KEYS, *_IMAGE_KEYS)
    kept = {name: value for name, value in row.items() if name not in taken}
    image = next((row[name] for name in _IMAGE_KEYS if row.get(name) is not None), None)
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is not None:
        kept["image"] = image
    num_records = 0
    for number, (question, answer) in enumerate(turns):
        if boxes := boxes_in(answer):
            turn = {"turn": number} if len(turns) > 1 else {}
            asked = {"prompt": strip_placeholders(question)}
            solved = {"solution": boxes[0] if len(boxes) == 1 else boxes}
            yield kept | turn | asked | solved
            num_records += 1
    if num_records == 0:
        detail = f"none of {len(turns)} answers holds a box; the first: {str(turns[0][1])[:80]!r}"
        yield RecordError("answer_no_box", detail)


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row holds a list of messages."""
    return isinstance(row.get("conversations") or row.get("messages"), list)


def first_scale(row: Mapping[str, Any]) -> Literal["unit", "pixels"] | None:
    """What the first answer of a conversation that holds a box is written in."""
    if not is_conversation(row):
        return None
    for message in row.get("conversations") or row.get("messages") or ():
        if not isinstance(message, dict) or message.get("from", message.get("role")) not in (
            _ANSWERING
        ):
            continue
        if boxes := boxes_in(message.get("value", message.get("content"))):
            return "unit" if all(0 <= number <= 1 for number in boxes[0]) else "pixels"
    return None


def strip_placeholders(prompt: str) -> str:
    """The prompt without ``<image>``, which only tells a chat template where the image goes."""
    return _PLACEHOLDER.sub("", prompt).strip() if "<image>" in prompt else prompt


def boxes_in(answer: object) -> list[list[Any]]:
    """The boxes and points of an answer: text, or what JSON made of it.

    Text may hold ``[x1, y1, x2, y2]`` or ``[x, y]`` anywhere, JSON with ``bbox_2d`` or its like,
    ``(x1, y1), (x2, y2)``, or be just ``(x, y)``; where there is ``<answer>``, only that counts.
    """
    if not isinstance(answer, str):
        return _boxes_of_json(answer)
    if found := _ANSWER.search(answer):
        answer = found.group(1)
    fence = _FENCE.search(answer)
    try:
        value = json.loads(fence.group(1) if fence else answer)
    except (ValueError, RecursionError):
        pass
    else:
        return _boxes_of_json(value)
    if corners := _TWO_CORNERS.findall(answer):
        return [[_number(text) for text in box] for box in corners]
    if lists := _LIST.findall(answer):
        boxes = [[_number(text) for text in numbers.split(",")] for numbers in lists]
        return [box for box in boxes if len(box) in (2, 4)]
    if point := _POINT.fullmatch(answer.strip()):
        return [[_number(text) for text in point.groups()]]
    return []


def _boxes_of_json(value: object) -> list[list[Any]]:
    if isinstance(value, dict):
        return next((_boxes_of_json(value[key]) for key in _BOX_KEYS if key in value), [])
    if not isinstance(value, list):
        return []
    if _is_box(value):
        return [value]
    boxes = []
    for item in value:
        if isinstance(item, dict):
            item = next((item[key] for key in _BOX_KEYS if key in item), None)  # noqa: PLW2901
        if _is_box(item):
            boxes.append(item)
    return boxes


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (2, 4)
        and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in value)
    )


def _turns(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    messages = next((row[key] for key in _CONVERSATION_KEYS if row.get(key)), None)
    if isinstance(messages, dict):  # a table's list of structs, turned to a struct of lists
        columns = {key: value for key, value in messages.items() if isinstance(value, list)}
        messages = [
            dict(zip(columns, values, strict=False))
            for values in zip(*columns.values(), strict=False)
        ]
    question = None
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        speaker = message.get("from", message.get("role"))
        said = message.get("value", message.get("content"))
        if speaker in _ASKING:
            question = _text_of(said)
        elif speaker in _ANSWERING and question is not None:
            yield question, _text_of(said) or said
            question = None


def _text_of(said: object) -> str | None:
    if isinstance(said, str):
        return said
    if isinstance(said, list):  # parts, as in {"type": "text", "text": "Where is ..."}
        parts = [part.get("text") for part in said if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str)) or None
    return None


def _number(text: str) -> float:
    try:
        return int(text) if len(text) <= 15 else float(text)
    except ValueError:
        return float(text)
