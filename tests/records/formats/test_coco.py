import json

import pytest

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.open_inputs import RuleFlags, read_formed, rules_of
from grpo_stream.records.formats.rules import Rules
from tests.records.formats.support import COCO, read_all, write


def coco(**change):
    return COCO | change


def test_one_record_for_each_category_in_each_image(tmp_path):
    source, records = read_all(write(tmp_path / "instances.json", COCO))
    assert (source.format, source.container) == ("coco", "document")
    assert {form[2:4] for _, form, _ in read_formed(source)} == {("xywh", "pixels")}
    size = {"width": 40, "height": 30}
    assert records == [
        (0, {"image": "a.jpg", "image_id": 7, "category": "cat", "annotation_ids": [2, 4],
             "prompt": "Locate the cat.", "solution": [[5, 6, 7, 8], [9, 9, 1, 1]], **size}),
        (0, {"image": "a.jpg", "image_id": 7, "category": "traffic light", "annotation_ids": [3],
             "prompt": "Locate the traffic light.", "solution": [1, 1, 2, 2], **size}),
        (1, {"image": "b.jpg", "image_id": 8, "category": "traffic light", "annotation_ids": [1],
             "prompt": "Locate the traffic light.", "solution": [1, 2, 3, 4], **size}),
    ]  # fmt: skip


@pytest.mark.parametrize("order", [sorted(COCO), sorted(COCO, reverse=True)])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_order_of_the_lists_does_not_matter(tmp_path, order, indent):
    text = json.dumps({name: COCO[name] for name in order}, indent=indent)
    source, records = read_all(write(tmp_path / "a.json", text))
    assert source.format == "coco"
    categories = [record["category"] for _, record in records]
    assert categories == ["cat", "traffic light", "traffic light"]


@pytest.mark.parametrize(
    ("change", "index", "cause"),
    [
        ({"images": [*COCO["images"], {"file_name": "c.jpg"}]}, 3, "image_entry"),
        ({"images": [*COCO["images"], 5]}, 3, "image_entry"),
        ({"annotations": [{"id": 1, "image_id": 99, "bbox": [1, 2, 3, 4]}]}, 3,
         "annotation_without_image"),
        ({"annotations": [{"id": 1, "image_id": [9]}, None]}, 3, "annotation_entry"),
        ({"categories": []}, 0, "category_unknown"),
        ({"categories": [{"id": 1, "name": 5}, 3]}, 0, "category_unknown"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path, change, index, cause):
    _, records = read_all(write(tmp_path / "a.json", coco(**change)), "coco")
    errors = [(at, error.cause) for at, error in records if isinstance(error, RecordError)]
    assert (index, cause) in errors


def test_a_box_that_is_missing_is_left_to_the_judge(tmp_path):
    annotations: list[object] = [{"id": 1, "image_id": 7, "category_id": 1}]
    _, records = read_all(write(tmp_path / "a.json", coco(annotations=annotations)))
    assert "solution" not in records[0][1]
    annotations.append({"id": 2, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]})
    _, records = read_all(write(tmp_path / "a.json", coco(annotations=annotations)))
    assert records[0][1]["solution"] == [None, [1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ({"info": {}}, "input_not_coco"),
        ([COCO], "input_not_json"),
        (json.dumps(COCO)[:-20], "input_not_json"),
        (json.dumps(COCO) + "{}", "input_not_json"),
    ],
)
def test_documents_that_are_none(tmp_path, value, cause):
    with pytest.raises(RecordError, match=cause):
        read_all(write(tmp_path / "a.json", value), "coco")


def test_a_record_key_makes_no_sense(tmp_path):
    source, _ = read_all(write(tmp_path / "a.json", COCO))
    with pytest.raises(ValueError, match=r"--prompt-key='question': goes with plain records"):
        rules_of(source, Rules(), RuleFlags(prompt_key="question"))
    assert rules_of(source, Rules(), RuleFlags(box_format="xyxy")).box_format == "xyxy"
