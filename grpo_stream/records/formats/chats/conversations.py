"""Conversations of VLM-R1, LLaVA, LLaVA-Factory's sharegpt and OpenAI's content parts.

``{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>Where is the key?"},
{"from": "gpt", "value": "[12, 5, 40, 60]"}]}``; the names ``messages``, ``images``, ``role``,
``content``, ``user`` and ``assistant`` are understood as well, and content in parts, of which one
may be the image. Every question whose answer has a place is a record. VLM-R1's numbers are pixels,
LLaVA's are 0-1; where the user names neither, all records of a file decide.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.chats.places import Places, places_in
from grpo_stream.records.formats.forms import Context, Form, Formed
from grpo_stream.records.formats.image_values import unwrapped_image
from grpo_stream.records.formats.rules import BoxFormat, Coords

CONVERSATION_KEYS = ("conversations", "messages", "conversation")
IMAGE_KEYS = ("image", "images")
_ASKING, _ANSWERING = ("human", "user"), ("gpt", "assistant", "model")
_PLACEHOLDER = re.compile(r"[ \t]*<image>[ \t]*\n?")
_DEFINED: dict[str, tuple[BoxFormat, Coords]] = {
    "vlm_r1": ("xyxy", "pixels"),
    "llava": ("xyxy", "unit"),
}


class Said(NamedTuple):
    """One message."""

    speaker: Any
    content: Any
    """Text, or what stands in its place."""
    images: list[Any]
    """Those of its parts."""


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row holds a list of messages."""
    return any(isinstance(row.get(key), (list, dict)) for key in CONVERSATION_KEYS)


def conversation_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """The records of one conversation.

    Turns without a place in the answer are passed over. All other fields of the conversation are
    kept in each record, with ``turn``, counted from 0, where there are several.

    Yields:
        Records with ``image``, ``prompt`` and ``solution`` (a list of boxes where the answer
        holds several), or one RecordError, causes ``conversation_missing`` and
        ``answer_no_box``.
    """
    turns = list(_turns(row))
    if not turns:
        detail = f"no question and answer in {' or '.join(CONVERSATION_KEYS[:2])}"
        yield RecordError("conversation_missing", f"{detail}; its fields are {list(row)}"[:300])
        return
    kept = without_chat(row)
    num_records = 0
    for number, (question, answer, images) in enumerate(turns):
        if (places := places_in(answer)) is None:
            continue
        turn = {"turn": number} if len(turns) > 1 else {}
        image = image_field(row, images)
        asked = {"prompt": asked_of(question, image)} | image
        yield form_of(places, context), kept | turn | asked | {"solution": solution_of(places)}
        num_records += 1
    if num_records == 0:
        detail = f"none of {len(turns)} answers holds a place; the first: {str(turns[0][1])[:80]!r}"
        yield RecordError("answer_no_box", detail)


def form_of(places: Places, context: Context) -> Form:
    """The form of a record whose answer has these places."""
    kind = places.kind
    box_format, coords = kind.box_format, kind.coords
    if context.is_told and coords is None:
        told = _DEFINED.get(context.name, (None, None))
        box_format, coords = box_format or told[0], told[1]
    if box_format is None and coords is None and kind.usual == ("xyxy",):
        return Form(context.name, "answers", warning=kind.warning)  # of any kind: one unit
    fields = f"answers ({kind.words})"
    return Form(context.name, fields, box_format, coords, kind.usual, kind.warning)


def solution_of(places: Places) -> list[Any]:
    """What a record has as its solution."""
    return places.numbers[0] if len(places.numbers) == 1 else places.numbers


def without_chat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's other fields."""
    taken = (*CONVERSATION_KEYS, *IMAGE_KEYS)
    return {name: value for name, value in row.items() if name not in taken}


def image_field(row: Mapping[str, Any], in_parts: list[Any]) -> dict[str, Any]:
    """The field ``image`` of a record, from the row or from the parts of its question."""
    image = next((row[name] for name in IMAGE_KEYS if row.get(name) is not None), None)
    if image is None or image == []:
        image = in_parts or None
    return {} if image is None else {"image": unwrapped_image(image)}


def asked_of(question: str, image: Mapping[str, Any]) -> str:
    """The prompt of a question; of several images it keeps their places.

    Args:
        question: With ``<image>`` in the places of images.
        image: What :func:`image_field` gave.
    """
    named = image.get("image")
    is_of_several = isinstance(named, list) and len(named) > 1
    return question if is_of_several else strip_placeholders(question)


def strip_placeholders(prompt: str) -> str:
    """The prompt without ``<image>``, which only tells a chat template where the image goes."""
    return _PLACEHOLDER.sub("", prompt).strip() if "<image>" in prompt else prompt


def messages_of(row: Mapping[str, Any]) -> Iterator[Said]:
    """The messages of a row, in any of the spellings."""
    messages = next((row[key] for key in CONVERSATION_KEYS if row.get(key)), None)
    if isinstance(messages, dict):  # a table's list of structs, turned to a struct of lists
        columns = {key: value for key, value in messages.items() if isinstance(value, list)}
        messages = [
            dict(zip(columns, values, strict=False))
            for values in zip(*columns.values(), strict=False)
        ]
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            said = message.get("value", message.get("content"))
            speaker = message.get("from", message.get("role"))
            yield Said(speaker, _text_of(said) or said, _images_of(said))


def is_asking(speaker: object) -> bool:
    """Whether a message is the user's."""
    return speaker in _ASKING


def is_answering(speaker: object) -> bool:
    """Whether a message is the model's."""
    return speaker in _ANSWERING


def _turns(row: Mapping[str, Any]) -> Iterator[tuple[str, Any, list[Any]]]:
    question: tuple[str, list[Any]] | None = None
    images: list[Any] = []
    for speaker, content, in_parts in messages_of(row):
        if is_asking(speaker):
            images = in_parts or images  # a later question is about the image seen last
            question = (content, images) if isinstance(content, str) else None
        elif is_answering(speaker) and question is not None:
            yield question[0], content, question[1]
            question = None


def _text_of(said: object) -> str | None:
    if isinstance(said, str):
        return said
    if isinstance(said, list):  # parts, as in {"type": "text", "text": "Where is ..."}
        parts = [part for part in said if isinstance(part, dict)]
        is_place = [_image_of(part) is not None or part.get("type") == "image" for part in parts]
        texts = [
            "<image>" if is_image and sum(is_place) > 1 else part.get("text")
            for part, is_image in zip(parts, is_place, strict=True)
        ]
        return "".join(text for text in texts if isinstance(text, str)) or None
    return None


def _images_of(said: object) -> list[Any]:
    parts = said if isinstance(said, list) else ()
    images = [_image_of(part) for part in parts if isinstance(part, dict)]
    return [image for image in images if image is not None]


def _image_of(part: Mapping[str, Any]) -> Any:
    """The image of a part of a message; None where it is another part."""
    if "image" not in str(part.get("type", "image")):
        return None
    return part.get("image_url", part.get("image", part.get("path", part.get("url"))))
