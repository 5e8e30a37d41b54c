"""EasyR1, verl and Alpaca's fields: an image, a question, and an answer that is a text.

``{"images": ["a.jpg"], "problem": "<image>Where is the key?", "answer": "[12, 5, 40, 60]"}``, and
verl's ``{"prompt": [{"role": "user", "content": ...}], "images": [...], "reward_model":
{"ground_truth": ...}}``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.chats.conversations import (
    form_of,
    is_asking,
    messages_of,
    solution_of,
    strip_placeholders,
)
from grpo_stream.records.formats.chats.places import places_in
from grpo_stream.records.formats.forms import Context, Formed, first_of
from grpo_stream.records.formats.image_values import unwrapped_image

_IMAGES = ("images", "image")
_QUESTIONS = ("problem", "question", "query", "instruction")
_ANSWERS = ("answer", "response", "output", "ground_truth")


def is_easyr1(row: Mapping[str, Any]) -> bool:
    """Whether a row has the fields of EasyR1's or verl's examples."""
    if "bbox" in row or not any(name in row for name in _IMAGES):
        return False
    return _is_verl(row) or None not in (first_of(_QUESTIONS, row), first_of(_ANSWERS, row))


def easyr1_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """The record of one row; causes ``answer_no_box``, ``prompt_missing``."""
    taken: tuple[str | None, ...]
    if _is_verl(row):
        question = _question(row)
        answer = row["reward_model"].get("ground_truth")
        taken = (*_IMAGES, "prompt", "reward_model")
    else:
        asked, answered = first_of(_QUESTIONS, row), first_of(_ANSWERS, row)
        question, answer = row.get(asked or ""), row.get(answered or "")
        taken = (*_IMAGES, asked, answered)
    if not isinstance(question, str):
        yield RecordError("prompt_missing", f"no question in {list(row)!r:.200}")
        return
    places = places_in(answer)
    if places is None:
        yield RecordError("answer_no_box", f"the answer {answer!r:.80} names no place")
        return
    record = {name: value for name, value in row.items() if name not in taken}
    record["image"] = unwrapped_image(row.get(first_of(_IMAGES, row) or ""))
    record["prompt"] = strip_placeholders(question)
    yield form_of(places, context), record | {"solution": solution_of(places)}


def _is_verl(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("prompt"), list) and isinstance(row.get("reward_model"), dict)


def _question(row: Mapping[str, Any]) -> str | None:
    asked = [said.content for said in messages_of({"messages": row["prompt"]})
             if is_asking(said.speaker)]  # fmt: skip
    return next((text for text in reversed(asked) if isinstance(text, str)), None)
