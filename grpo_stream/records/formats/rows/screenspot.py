"""ScreenSpot, its second version and ScreenSpot-Pro.

``{"img_filename": "pc_1.png", "bbox": [x, y, width, height], "instruction": "close the window"}``
in pixels; Pro, whose records have ``ui_type`` and ``img_size``, writes ``[x1, y1, x2, y2]``; the
Parquet copies have ``image`` and ``file_name`` and write ``[x1, y1, x2, y2]`` in 0-1. People write
files of their own with these names and other boxes, so the names alone decide nothing: this holds
where the user says ``--format screenspot``. ScreenSpot-Pro's rows of ``gt_type`` ``negative`` ask
for what is not there.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_stream.records.formats.forms import (
    Context,
    Form,
    Formed,
    first_of,
    missing,
    prompt_of,
    refusal,
    says_nothing_is_there,
)
from grpo_stream.records.formats.image_values import unwrapped_image
from grpo_stream.records.formats.rows.box_fields import with_numbers
from grpo_stream.records.formats.rules import BoxFormat, Coords

_IMAGES = ("image", "img_filename", "file_name", "img_path")
_TAKEN = ("img_filename", "bbox", "instruction", "img_path", "image", "prompt", "solution")
_PROMPTS = ("instruction", "question", "prompt_to_evaluate")


def is_screenspot(row: Mapping[str, Any]) -> bool:
    """Whether a row has ScreenSpot's fields."""
    return "img_filename" in row and ("bbox" in row or says_nothing_is_there(row))


def screenspot_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """The record of one row; causes ``image_missing``, ``prompt_missing``, ``solution_missing``."""
    record = {name: value for name, value in row.items() if name not in _TAKEN}
    image, prompt = first_of(_IMAGES, row), prompt_of(_PROMPTS, row, context)
    if prompt is None:
        yield missing("prompt", _PROMPTS[:1], row)
        return
    is_refusal = says_nothing_is_there(row)
    if "bbox" not in row and not is_refusal:
        yield missing("solution", ("bbox",), row)
        return
    if image is None:
        yield missing("image", _IMAGES[1:], row)
        return
    record |= {"image": unwrapped_image(row[image]), "prompt": row[prompt]}
    if is_refusal:
        yield refusal(record, context.name)
        return
    box_format, coords = screenspot_layout(row) if context.is_told else (None, None)
    form = Form(context.name, "bbox", box_format, coords, ("xywh", "xyxy"))
    yield with_numbers(form, record | {"solution": row["bbox"]})


def screenspot_layout(row: Mapping[str, Any]) -> tuple[BoxFormat, Coords]:
    """How the version of ScreenSpot writes boxes that has such rows."""
    box = row.get("bbox")
    if isinstance(box, list) and box and all(_is_unit(number) for number in box):
        return "xyxy", "unit"
    is_pro = "ui_type" in row or "img_size" in row
    return "xyxy" if is_pro else "xywh", "pixels"


def _is_unit(number: object) -> bool:
    return isinstance(number, (int, float)) and 0 <= number <= 1
