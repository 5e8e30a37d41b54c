"""One row a screen, its targets in a list: OS-Atlas's ``elements``, ShowUI's ``element``.

``{"img_filename": "a.png", "elements": [{"instruction": "close", "bbox": [...]}, ...]}``: a record
for each element, with the row's other fields and the element's own.
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
    missing,
)
from grpo_stream.records.formats.image_values import unwrapped_image
from grpo_stream.records.formats.rows.box_fields import with_numbers

_LISTS = ("elements", "element", "annotations", "targets", "objects", "regions")
_PROMPTS = (
    "instruction", "expression", "prompt", "text", "name", "description", "referring", "phrase",
)  # fmt: skip
_BOXES = ("bbox", "box", "bounding_box", "bbox_2d", "point")


def has_elements(row: Mapping[str, Any]) -> bool:
    """Whether a row names an image and lists objects with a box each."""
    name = _list_of(row)
    return name is not None and first_of(NAMES_OF_IMAGES, row) is not None


def element_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """A record for each element; causes ``prompt_missing``, ``solution_missing``."""
    listed = _list_of(row)
    image = first_of(NAMES_OF_IMAGES, row)
    if listed is None or image is None:
        yield missing("image" if image is None else "solution", _LISTS[:2], row)
        return
    shared = {name: value for name, value in row.items() if name not in (listed, image)}
    shared.pop(f"{listed}_size", None)
    shared["image"] = unwrapped_image(row[image])
    for number, element in enumerate(row[listed]):
        if not isinstance(element, Mapping):
            yield RecordError("element_not_object", f"{listed}[{number}] is {element!r:.60}")
            continue
        prompt, box = first_of(_PROMPTS, element), first_of(_BOXES, element)
        if prompt is None or box is None:
            names = _PROMPTS[:3] if prompt is None else _BOXES[:3]
            yield missing("prompt" if prompt is None else "solution", names, element)
            continue
        own = {name: value for name, value in element.items() if name not in (prompt, box)}
        asked = {"prompt": element[prompt], "solution": element[box], "element": number}
        form = Form(context.name, f"{listed}.{box}", None, None, ("xyxy", "xywh"))
        yield with_numbers(form, shared | own | asked)


def _list_of(row: Mapping[str, Any]) -> str | None:
    for name in _LISTS:
        value = row.get(name)
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, Mapping) and first_of(_BOXES, first) is not None:
            return name
    return None
