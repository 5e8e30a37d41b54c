import pytest

from grpo_stream.records.formats.chats.swift import swift_records
from grpo_stream.records.formats.forms import Context
from tests.records.formats.support import formed

BOX = [12, 5, 40, 60]


def swift(*texts, **more):
    turns = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    ]
    return {"messages": turns, "images": ["a.jpg"]} | more


def read(row):
    return formed(swift_records(row, Context("swift")))


@pytest.mark.parametrize(
    ("bbox_type", "coords"),
    [(None, "pixels"), ("real", "pixels"), ("norm1", "unit"), ("norm1000", "per_mille")],
)
def test_objects_are_put_in(bbox_type, coords):
    objects = {"ref": ["key", "key"], "bbox": [BOX]}
    objects |= {} if bbox_type is None else {"bbox_type": bbox_type}
    answer = '[{"bbox_2d": <bbox>, "label": "<ref-object>"}]'
    ((form, record),) = read(swift("<image>Find the <ref-object>", answer, objects=objects))
    assert record == {"image": "a.jpg", "prompt": "Find the key", "solution": BOX}
    assert (form.box_format, form.coords) == ("xyxy", coords)


def test_several_boxes_and_turns():
    objects = {"ref": ["keys", "cup"], "bbox": [BOX, [1, 2, 3, 4], [5, 6]]}
    chat = ("Find all <ref-object>", "<bbox>, <bbox>", "And the <ref-object>?", "<bbox>")
    (_, first), (_, second) = read(swift(*chat, objects=objects))
    assert (first["prompt"], first["solution"]) == ("Find all keys", [BOX, [1, 2, 3, 4]])
    assert (second["prompt"], second["solution"], second["turn"]) == ("And the cup?", [5, 6], 1)


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (swift("Find", "<bbox><bbox>", objects={"bbox": [BOX]}), "objects_missing"),
        (swift("Find", "<bbox>", objects={"bbox": [BOX], "bbox_type": "odd"}), "bbox_type"),
        (swift("What is <bbox>?", "A cup", objects={"bbox": [BOX]}), "answer_no_box"),
        (swift("Find", objects={"bbox": []}), "solution_missing"),
        (swift("Find", solution=None), "solution_none"),
        (swift("Find", solution="a cup"), "answer_no_box"),
        (swift(solution=BOX), "conversation_missing"),
    ],
)
def test_rows_that_are_none(row, cause):
    (error,) = read(row)
    assert error.cause == cause


@pytest.mark.parametrize("solution", [BOX, "<answer>[12, 5, 40, 60]</answer>", [BOX]])
def test_a_question_with_its_solution_beside(solution):
    ((form, record),) = read(swift("<image>Where is it?", solution=solution, level=3))
    asked = {"image": "a.jpg", "prompt": "Where is it?", "solution": BOX}
    assert record == asked | {"level": 3}
    assert (form.box_format, form.coords) == ("xyxy", "pixels")


def test_the_older_form():
    row = {"query": "<image>Find it", "response": "<bbox>", "images": ["a.jpg"]}
    ((_, record),) = read(row | {"objects": {"ref": [], "bbox": [BOX]}})
    assert record == {"image": "a.jpg", "prompt": "Find it", "solution": BOX}
