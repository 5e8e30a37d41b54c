"""Inputs in every format, small."""

import json
from typing import Any

from grpo_stream.records.formats.open_inputs import expand_inputs, read_source

COCO = {
    "info": {"description": "a set"},
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30, "coco_url": "http://a"},
        {"id": 8, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 9, "file_name": "empty.jpg", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 8, "category_id": 2, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2]]},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [5, 6, 7, 8], "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [1, 1, 2, 2]},
        {"id": 4, "image_id": 7, "category_id": 1, "bbox": [9, 9, 1, 1]},
        {"id": 5, "image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 30], "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "traffic light"}],
}
"""Two images with annotations of two categories, a crowd region, an image without any."""


def formed(found):
    """Pairs of form and record, or the RecordErrors among them."""
    rows: list[Any] = list(found)
    return rows


def write(path, value):
    """A file of bytes, text, or a value as JSON."""
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def read_all(word, input_format="auto", **options):
    """The one source of a word, and its records."""
    (source,) = expand_inputs([word], input_format)
    return source, list(read_source(source, **options))
