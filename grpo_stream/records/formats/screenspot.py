"""ScreenSpot, its second version and ScreenSpot-Pro.

``{"img_filename": "pc_1.png", "bbox": [x, y, width, height], "instruction": "close the window"}``
in pixels; Pro, whose records have ``ui_type`` and ``img_size``, writes ``[x1, y1, x2, y2]``; the
Parquet copies have ``image`` and ``file_name`` and write ``[x1, y1, x2, y2]`` in 0-1.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_stream.records.formats.rules import BoxFormat, Coords

_FIELDS = {"image": ("image", "img_filename", "file_name", "img_path")}
_TAKEN = ("img_filename", "bbox", "instruction", "img_path", "image")


def screenspot_records(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The record of one row; fields that are missing are left to the judge."""
    record = {name: value for name, value in row.items() if name not in _TAKEN}
    for name in _FIELDS["image"]:
        if row.get(name) is not None:
            record["image"] = row[name]
            break
    for name, source in (("prompt", "instruction"), ("solution", "bbox")):
        record.pop(name, None)
        if source in row:
            record[name] = row[source]
    yield record


def screenspot_layout(row: Mapping[str, Any]) -> tuple[BoxFormat, Coords]:
    """How the boxes of a file are written that begins with this row."""
    box = row.get("bbox")
    if isinstance(box, list) and box and all(_is_unit(number) for number in box):
        return "xyxy", "unit"
    is_pro = "ui_type" in row or "img_size" in row
    return "xyxy" if is_pro else "xywh", "pixels"


def _is_unit(number: object) -> bool:
    return isinstance(number, (int, float)) and 0 <= number <= 1
