"""OSWorld-G: ``box_type`` says what ``box_coordinates`` are.

``bbox`` is ``x, y, width, height``, ``polygon`` a flat list of corners, both in pixels; of a
``refusal`` nothing is there. OSWorld-G's refined form has other instructions, and the same fields.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.forms import (
    NAMES_OF_IMAGES,
    Context,
    Form,
    Formed,
    first_of,
    prompt_of,
    refusal,
    says_nothing_is_there,
)
from grpo_stream.records.formats.image_values import unwrapped_image
from grpo_stream.records.formats.rows.box_fields import with_numbers
from grpo_stream.records.formats.rules import BoxFormat

_KINDS: dict[Any, BoxFormat] = {"bbox": "xywh", "polygon": "polygon", "point": "point"}


def is_osworld(row: Mapping[str, Any]) -> bool:
    """Whether a row says of its numbers what they are."""
    return "box_type" in row and "box_coordinates" in row


def osworld_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """The record of one row; cause ``box_type``."""
    kind = row.get("box_type")
    is_refusal = says_nothing_is_there(row)
    if not is_refusal and (not isinstance(kind, str) or kind not in _KINDS):
        expected = f"expected {', '.join(map(str, _KINDS))} or refusal"
        yield RecordError("box_type", f"box_type={kind!r:.40}: {expected}")
        return
    image = first_of(NAMES_OF_IMAGES, row)
    asked = prompt_of(("instruction",), row, context) or "instruction"
    taken = (image, asked, "box_coordinates")
    record = {name: value for name, value in row.items() if name not in taken}
    if image is not None:
        record["image"] = unwrapped_image(row[image])
    for name, source in (("prompt", asked), ("solution", "box_coordinates")):
        if source in row:
            record[name] = row[source]
    if is_refusal:
        yield refusal(record, context.name)
        return
    form = Form(context.name, f"box_coordinates ({kind})", _KINDS[kind], "pixels")
    yield with_numbers(form, record) if kind == "bbox" else (form, record)
