"""Plain records: ``image``, ``prompt`` and ``solution``, or what the user calls them.

The documented fields are pixels, ``[x1, y1, x2, y2]`` or ``[x, y]``. Of fields that the user named
the numbers are whatever all of them together say. A solution may also be a text that holds its box
(``"[1, 2, 3, 4]"``, ``<answer>...</answer>``, JSON with ``bbox_2d``), a list of one, or an object.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.chats.conversations import solution_of
from grpo_stream.records.formats.chats.places import places_in
from grpo_stream.records.formats.forms import Context, Form, Formed
from grpo_stream.records.formats.image_values import unwrapped_image
from grpo_stream.records.formats.rules import BoxFormat, Rules
from grpo_stream.targets import WANTED_FIELD

_USUAL: tuple[BoxFormat, ...] = ("xyxy", "xywh", "cxcywh")
DOCUMENTED = Form("json", "solution", "xyxy", "pixels", _USUAL)
"""The form of records as the documents describe them."""

_AS_TEXT = ("solution_unwrapped", "the box is read out of a text or a list of one")


def is_plain(row: Mapping[str, Any]) -> bool:
    """Whether a row has the documented fields."""
    return "prompt" in row and "solution" in row and ("image" in row or "images" in row)


def is_plain_as_it_is(row: Any, rules: Rules) -> bool:
    """Whether a row is a record of the documented form already, with nothing to unwrap."""
    if type(row) is not dict or rules.solution_key != "solution" or "prompt" not in row:
        return False
    solution, image = row.get("solution"), row.get(rules.image_key)
    return (
        type(solution) is list
        and len(solution) > 1
        and type(solution[0]) in (int, float)
        and type(image) is str
        and unwrapped_image(image) is image
    )


def plain_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """The record of one row, extra fields and all; faults are left to the judge."""
    rules = context.rules
    image_key, solution_key = rules.image_key, rules.solution_key
    form = DOCUMENTED
    if solution_key != "solution":
        form = Form(context.name, solution_key, None, None, _USUAL)
    record = row if type(row) is dict else dict(row)
    if image_key not in row and image_key == "image" and "images" in row:
        record = {"image": row["images"], **row}
    image = record.get(image_key)
    unwrapped = unwrapped_image(image)
    if unwrapped is not image:
        record = record | {image_key: unwrapped}
    solution = record.get(solution_key)
    is_list = type(solution) is list and solution and type(solution[0]) in (int, float)
    if is_list or rules.box_format == "polygon":
        yield form, record
    else:
        yield _with_places(record, solution, form, context)


def _with_places(record: dict[str, Any], value: Any, form: Form, context: Context) -> Formed:
    key = context.rules.solution_key
    if value is None and record.get(WANTED_FIELD) == "none":
        return form, record | {key: []}
    is_text = record.get(context.rules.image_key) in (None, [])  # no image to have a place in
    if value is None and key in record and not is_text:
        return RecordError("solution_none", f"{key} is null: it has no target")
    if isinstance(value, list) and len(value) != 1 and not _is_of_objects(value):
        return form, record  # several, or for the judge
    places = places_in(value)
    if places is None:
        if isinstance(value, str):
            detail = f"{key}={value!r:.80} is no box or point in a form that says so"
            return RecordError("answer_no_box", detail)
        return form, record
    kind = places.kind
    warning = None if isinstance(value, list) else kind.warning
    if form is DOCUMENTED and not isinstance(value, dict):
        warning = warning or _AS_TEXT
    box_format = kind.box_format or form.box_format
    coords = kind.coords or form.coords
    words = form.fields if kind.words == "numbers" else f"{form.fields} ({kind.words})"
    usual = form.box_formats if kind.words == "numbers" else ("xyxy",)
    found = Form(form.reader, words, box_format, coords, usual, warning)
    return found, record | {key: solution_of(places)}


def _is_of_objects(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, dict) for item in value)
