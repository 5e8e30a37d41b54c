"""Rows of one target on a screen: MMBench-GUI L2, UI-Vision, and files of one's own.

``{"image_path": "a.png", "instruction": "close the window", "bbox": [...]}``, under any of the
names below. What ``bbox`` is differs from one set to the next, so all of its rows decide, unless
the user says which benchmark it is: MMBench-GUI L2 writes ``x1, y1, x2, y2`` in 0-1, UI-Vision two
opposite corners in pixels (its own evaluator swaps those that are the wrong way round). Rows of
UI-Vision's layout task have no instruction, but a ``name`` and an ``explanation`` of a region, both
of which its evaluator asks with: ``name: explanation`` is the prompt.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_stream.records.formats.chats.conversations import strip_placeholders
from grpo_stream.records.formats.chats.places import NAMED
from grpo_stream.records.formats.forms import (
    NAMES_OF_IMAGES,
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

PROMPTS = (
    "instruction", "prompt_to_evaluate", "prompt", "question", "problem", "query", "task",
    "expression", "text", "command",
)  # fmt: skip
BOXES = (
    "bbox", "box", "bounding_box", "bbox_2d", "box_2d", "bbox_gt", "gt_bbox", "point", "point_2d",
    "target",
)  # fmt: skip

_LAYOUT = ("name", "explanation")

_DEFINED: dict[str, tuple[BoxFormat, Coords]] = {
    "mmbench_gui": ("xyxy", "unit"),
    "ui_vision": ("corners", "pixels"),
}
"""What the formats of one benchmark alone define."""


def is_gui_row(row: Mapping[str, Any]) -> bool:
    """Whether a row has one name of each kind."""
    has_place = first_of(BOXES, row) is not None or says_nothing_is_there(row)
    has_words = first_of(PROMPTS, row) is not None or _is_layout(row)
    return has_place and has_words and first_of(NAMES_OF_IMAGES, row) is not None


def gui_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """The record of one row; causes ``image_missing``, ``prompt_missing``, ``solution_missing``."""
    is_refusal = says_nothing_is_there(row)
    if _is_layout(row) and prompt_of(PROMPTS, row, context) is None:
        row = {**row, "prompt": ": ".join(row[name].strip() for name in _LAYOUT)}
    names = [
        first_of(NAMES_OF_IMAGES, row),
        prompt_of(PROMPTS, row, context),
        "" if is_refusal else first_of(BOXES, row),
    ]
    for what, name, known in zip(
        ("image", "prompt", "solution"), names, (NAMES_OF_IMAGES, PROMPTS, BOXES), strict=True
    ):
        if name is None:
            yield missing(what, known[:3], row)
            return
    image, prompt, box = map(str, names)
    record = {name: value for name, value in row.items() if name not in (image, prompt, box)}
    record["image"] = unwrapped_image(row[image])
    text = row[prompt]
    record["prompt"] = strip_placeholders(text) if isinstance(text, str) else text
    if is_refusal:
        yield refusal(record, context.name)
        return
    box_format, coords = _DEFINED.get(context.name, (None, None))
    form = Form(context.name, box, box_format, coords, ("xyxy", "xywh", "cxcywh"))
    if (kind := NAMED.get(box)) is not None:
        form = form._replace(box_format=kind.box_format, coords=kind.coords)
    yield with_numbers(form, record | {"solution": row[box]})


def _is_layout(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row.get(name), str) for name in _LAYOUT)
