"""ms-swift: words and boxes of ``objects`` put in for placeholders, and its GRPO form.

``{"messages": [{"role": "user", "content": "<image>Find <ref-object>"}, {"role": "assistant",
"content": "<bbox>"}], "images": ["a.jpg"], "objects": {"ref": ["the key"], "bbox": [[12, 5, 40,
60]]}}``. Placeholders take ``ref`` and ``bbox`` in their order over all messages. ``bbox_type``
says what the numbers are: ``real`` (pixels, also without it), ``norm1`` (0-1), ``norm1000``.

In the GRPO form the messages end with a question, and ``solution`` beside them answers it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.chats.conversations import (
    asked_of,
    form_of,
    image_field,
    is_answering,
    is_asking,
    is_conversation,
    messages_of,
    solution_of,
    without_chat,
)
from grpo_stream.records.formats.chats.places import places_in
from grpo_stream.records.formats.forms import Context, Form, Formed, missing
from grpo_stream.records.formats.rules import Coords

_PLACEHOLDER = re.compile(r"<(ref-object|bbox)>")
_BBOX_TYPES: dict[Any, Coords] = {
    None: "pixels",
    "real": "pixels",
    "norm1": "unit",
    "norm1000": "per_mille",
}


def is_swift(row: Mapping[str, Any]) -> bool:
    """Whether a row has messages with objects, or with the solution beside them."""
    return ("objects" in row or "solution" in row) and (is_conversation(row) or "query" in row)


def swift_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """The records of one row; causes ``objects_missing``, ``bbox_type``, ``answer_no_box``."""
    if "query" in row and not is_conversation(row):  # its older form
        turns = [{"role": "user", "content": row["query"]}]
        if "response" in row:
            turns.append({"role": "assistant", "content": row["response"]})
        taken = ("query", "response")
        row = {k: v for k, v in row.items() if k not in taken} | {"messages": turns}
    objects = row.get("objects")
    if isinstance(objects, Mapping) and objects.get("bbox"):
        yield from _of_objects(row, objects, context)
    else:
        yield _of_solution(row, context)


def _of_objects(
    row: Mapping[str, Any], objects: Mapping[str, Any], context: Context
) -> Iterator[Formed]:
    coords = _BBOX_TYPES.get(objects.get("bbox_type"))
    if coords is None:
        expected = "expected real, norm1 or norm1000"
        yield RecordError("bbox_type", f"bbox_type={objects['bbox_type']!r:.40}: {expected}")
        return
    given: dict[str, list[Any]] = {
        "ref-object": list(objects.get("ref") or ()),
        "bbox": list(objects.get("bbox") or ()),
    }
    question = None
    images: list[Any] = []
    turns: list[tuple[str, list[Any]]] = []
    for speaker, content, in_parts in messages_of(row):
        text, boxes = _filled(content, given) if isinstance(content, str) else ("", [])
        if text is None:
            counts = f"{len(objects.get('ref') or ())} refs and {len(objects['bbox'])} boxes"
            yield RecordError("objects_missing", f"more placeholders than {counts}")
            return
        if is_asking(speaker):
            question, images = text, [*images, *in_parts]
        elif is_answering(speaker) and question and boxes:
            turns.append((question, boxes))
            question = None
    if not turns:
        yield RecordError("answer_no_box", "no question whose answer has <bbox>")
    image = image_field(row, images)
    kept = without_chat(row) | image
    kept.pop("objects", None)
    for number, (asked, boxes) in enumerate(turns):
        turn = {"turn": number} if len(turns) > 1 else {}
        solved = {"solution": boxes[0] if len(boxes) == 1 else boxes}
        form = Form(context.name, "objects.bbox", "xyxy", coords)
        yield form, kept | turn | {"prompt": asked_of(asked, image)} | solved


def _filled(text: str, given: dict[str, list[Any]]) -> tuple[str | None, list[Any]]:
    """The text with placeholders filled in, and the boxes that were; None where they ran out."""
    pieces, boxes = [], []
    end = 0
    for found in _PLACEHOLDER.finditer(text):
        values = given[found.group(1)]
        if not values:
            return None, []
        value = values.pop(0)
        if found.group(1) == "bbox":
            boxes.append(value)
        pieces += [text[end : found.start()], str(value)]
        end = found.end()
    return "".join([*pieces, text[end:]]), boxes


def _of_solution(row: Mapping[str, Any], context: Context) -> Formed:
    question, images = None, list[Any]()
    for speaker, content, in_parts in messages_of(row):
        if is_asking(speaker) and isinstance(content, str):
            question, images = content, [*images, *in_parts]
    if question is None:
        return RecordError("conversation_missing", f"no question in {list(row)!r:.200}")
    if "solution" not in row:
        return missing("solution", ("solution", "objects"), row)
    kept = without_chat(row)
    kept.pop("objects", None)
    if row["solution"] is None:
        return RecordError("solution_none", "solution is null: it has no target")
    places = places_in(row["solution"])
    if places is None:
        return RecordError("answer_no_box", f"solution={row['solution']!r:.80} names no place")
    form = form_of(places, context)
    if form.coords is None:
        form = Form(context.name, "solution", "xyxy", "pixels", warning=form.warning)
    image = image_field(row, images)
    asked = {"prompt": asked_of(question, image), "solution": solution_of(places)}
    return form, kept | image | asked
