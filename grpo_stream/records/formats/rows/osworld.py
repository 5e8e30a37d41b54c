"""OSWorld-G: ``box_type`` says what ``box_coordinates`` are.

``bbox`` is ``x, y, width, height``, ``polygon`` a flat list of corners, both in pixels; a
``refusal`` has no target and is left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.forms import NAMES_OF_IMAGES, Context, Form, Formed, first_of
from grpo_stream.records.formats.image_values import unwrapped_image
from grpo_stream.records.formats.rules import BoxFormat

_KINDS: dict[Any, BoxFormat] = {"bbox": "xywh", "polygon": "polygon", "point": "point"}


def is_osworld(row: Mapping[str, Any]) -> bool:
    """Whether a row says of its numbers what they are."""
    return "box_type" in row and "box_coordinates" in row


def osworld_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """The record of one row; causes ``refusal``, ``box_type``."""
    kind = row.get("box_type")
    if kind == "refusal":
        yield RecordError("refusal", "box_type is refusal: what is asked for is not there")
        return
    if not isinstance(kind, str) or kind not in _KINDS:
        expected = f"expected {', '.join(map(str, _KINDS))} or refusal"
        yield RecordError("box_type", f"box_type={kind!r:.40}: {expected}")
        return
    image = first_of(NAMES_OF_IMAGES, row)
    taken = (image, "instruction", "box_coordinates")
    record = {name: value for name, value in row.items() if name not in taken}
    if image is not None:
        record["image"] = unwrapped_image(row[image])
    for name, source in (("prompt", "instruction"), ("solution", "box_coordinates")):
        if source in row:
            record[name] = row[source]
    yield Form(context.name, f"box_coordinates ({kind})", _KINDS[kind], "pixels"), record
