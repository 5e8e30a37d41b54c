import json
import re
from typing import Any

import pytest

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.forms import Context
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.formats.open_inputs import read_formed
from grpo_stream.records.formats.rows.refcoco import refcoco_layout, refcoco_records
from tests.records.formats.support import formed, read_all, write

IMAGE = "COCO_train2014_000000581857.jpg"
REF = {
    "ref_id": 45, "ann_id": 1719310, "image_id": 581857, "category_id": 1, "split": "train",
    "file_name": "COCO_train2014_000000581857_16.jpg", "sent_ids": [0, 1],
    "sentences": [
        {"tokens": ["the", "lady"], "raw": "THE lady", "sent_id": 0, "sent": "the lady"},
        {"tokens": ["woman"], "raw": "woman", "sent_id": 1, "sent": "woman"},
    ],
}  # fmt: skip
INSTANCES = {
    "images": [{"id": 581857, "file_name": IMAGE, "width": 640, "height": 427}],
    "annotations": [{"id": 1719310, "image_id": 581857, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    "categories": [],
}
MDETR = {
    "images": [
        {"file_name": IMAGE, "height": 427, "width": 640, "id": 0, "original_id": 581857,
         "caption": "the lady with the blue shirt", "dataset_name": "refcoco"},
        {"file_name": IMAGE, "height": 427, "width": 640, "id": 1,
         "expressions": ["red car", "the car on the left"]},
    ],
    "annotations": [
        {"id": 0, "image_id": 0, "category_id": 1, "bbox": [10, 20, 30, 40],
         "tokens_positive": [[0, 8]], "iscrowd": 0},
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
    ],
    "categories": [{"id": 1, "name": "object"}],
}  # fmt: skip


def forms_of(source):
    """What the format says of the boxes of all records."""
    return {(form.box_format, form.coords) for _, form, _ in read_formed(source)}


def triples(records):
    return [
        (i, record.get("image"), record["prompt"], record.get("solution")) for i, record in records
    ]


def test_mdetr(tmp_path):
    for value in (MDETR, {name: MDETR[name] for name in reversed(MDETR)}):
        source, records = read_all(write(tmp_path / "finetune_refcoco_train.json", value))
        assert source.format == "refcoco"
        assert forms_of(source) == {("xywh", "pixels")}
        assert triples(records) == [
            (0, IMAGE, "the lady with the blue shirt", [10, 20, 30, 40]),
            (1, IMAGE, "red car", [1, 2, 3, 4]),
            (1, IMAGE, "the car on the left", [1, 2, 3, 4]),
        ]
        assert records[0][1]["original_id"] == 581857


def test_references_with_instances_beside(tmp_path):
    write(tmp_path / "instances.json", INSTANCES)
    stored: list[bytes] = []
    source, records = read_all(write(tmp_path / "refs.json", [REF]), on_bytes=stored.append)
    assert source.format == "refcoco"
    assert forms_of(source) == {("xywh", "pixels")}
    assert triples(records) == [
        (0, IMAGE, "the lady", [1, 2, 3, 4]),
        (0, IMAGE, "woman", [1, 2, 3, 4]),
    ]
    kept = {"ref_id": 45, "sent_id": 1, "split": "train", "width": 640, "annotation_ids": [1719310]}
    assert kept.items() <= records[1][1].items()
    assert b"".join(stored).endswith(json.dumps(INSTANCES).encode())


def test_references_without_instances(tmp_path):
    with pytest.raises(RecordError, match=r"input_unreadable: .*references without boxes"):
        read_all(write(tmp_path / "refs.json", [REF]))
    _, records = read_all(write(tmp_path / "refs.json", [REF | {"bbox": [5, 6, 7, 8]}]))
    assert triples(records)[0] == (0, IMAGE, "the lady", [5, 6, 7, 8])


@pytest.mark.parametrize(
    ("row", "box_format"),
    [
        ({"img_path": IMAGE, "expression": "the lady", "height": 427, "width": 640}, "xyxy"),
        ({"image": f"coco/{IMAGE}", "sent": "the lady"}, "xyxy"),
        ({"image": InlineImage("a", b""), "question": "What?", "answer": ["the lady"]}, "xywh"),
        ({"image_path": IMAGE, "file_name": "x", "raw_anns": "{}", "sentences": ["the lady"]},
         "xyxy"),
    ],
)  # fmt: skip
def test_rows(row, box_format):
    row = row | {"bbox": [1.0, 2.0, 30.0, 40.0]}
    assert refcoco_layout(row) == (box_format, "pixels")
    record: Any
    ((_, record),) = formed(refcoco_records(row, Context("refcoco")))
    image = row.get("img_path", row.get("image_path", row.get("image")))
    assert triples([(0, record)]) == [(0, image, "the lady", [1.0, 2.0, 30.0, 40.0])]
    assert not {"question", "bbox", "raw_anns", "img_path", "sent"} & record.keys()


def test_a_row_without_a_sentence():
    error: Any
    row = {"bbox": [1, 2, 3, 4], "image": "a.jpg", "sentences": []}
    (error,) = refcoco_records(row, Context("refcoco"))
    assert (error.cause, "sentences" in error.detail) == ("prompt_missing", True)


def test_a_pickle_is_refused_with_the_way_out(tmp_path):
    for name, data in (("refs(unc).p", b"x"), ("refs.json", b"\x80\x04]q\x00.")):
        with pytest.raises(ValueError, match=re.escape("json.dump(pickle.load")):
            read_all(write(tmp_path / name, data), "refcoco")
