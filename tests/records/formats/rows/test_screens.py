"""Rows of screens: one target each, or a list of them, under whatever names."""

import pytest

from grpo_stream.records.formats.forms import Context
from grpo_stream.records.formats.rows.easyr1 import easyr1_records
from grpo_stream.records.formats.rows.elements import element_records, has_elements
from grpo_stream.records.formats.rows.gui_rows import gui_records, is_gui_row
from grpo_stream.records.formats.rows.osworld import osworld_records
from grpo_stream.records.formats.rows.plain_records import plain_records
from grpo_stream.records.formats.rules import Rules
from tests.records.formats.support import formed

BOX = [12, 5, 40, 60]


def test_each_element_is_a_record():
    row = {
        "img_url": "a.png",
        "element": [
            {"instruction": "close", "bbox": BOX, "point": [26, 32], "data_type": "icon"},
            {"text": "save", "bbox": [1, 2, 3, 4]},
            {"instruction": "no place"},
            "no object",
        ],
        "element_size": 4,
        "platform": "web",
    }
    assert has_elements(row)
    first, second, third, fourth = formed(element_records(row, Context("elements")))
    shared = {"image": "a.png", "platform": "web"}
    assert first[1] == shared | {
        "prompt": "close", "solution": BOX, "point": [26, 32], "data_type": "icon", "element": 0,
    }  # fmt: skip
    assert second[1] == shared | {"prompt": "save", "solution": [1, 2, 3, 4], "element": 1}
    assert (third.cause, fourth.cause) == ("solution_missing", "element_not_object")


@pytest.mark.parametrize("image", ["image_path", "img_path", "screenshot", "img_filename"])
@pytest.mark.parametrize("prompt", ["instruction", "prompt_to_evaluate", "question"])
def test_one_target_under_other_names(image, prompt):
    row = {image: "a.png", prompt: "close", "bbox": BOX, "platform": "web"}
    assert is_gui_row(row)
    ((form, record),) = formed(gui_records(row, Context("gui")))
    asked = {"image": "a.png", "prompt": "close", "solution": BOX}
    assert record == asked | {"platform": "web"}
    assert form.box_format is None  # evidence decides


@pytest.mark.parametrize(
    ("name", "defined"),
    [
        ("gui", (None, None)),
        ("mmbench_gui", ("xyxy", "unit")),
        ("ui_vision", ("corners", "pixels")),
    ],
)
def test_a_benchmark_that_was_named_defines_its_boxes(name, defined):
    row = {"image_path": "a.png", "instruction": "close", "bbox": BOX}
    ((form, _),) = formed(gui_records(row, Context(name, is_told=True)))
    assert (form.box_format, form.coords) == defined


def test_rows_that_ask_for_what_is_not_there():
    row = {"image_path": "a.png", "instruction": "close", "gt_type": "negative"}
    for one in (row, row | {"bbox": BOX}):
        assert is_gui_row(one)
        ((form, record),) = formed(gui_records(one, Context("gui")))
        assert form.is_refusal
        assert (record["solution"], record["solution_wanted"]) == ([], "none")


def test_a_name_that_defines_its_numbers():
    row = {"image": "a.png", "instruction": "close", "box_2d": [5, 12, 60, 40]}
    ((form, _),) = formed(gui_records(row, Context("gui")))
    assert (form.box_format, form.coords) == ("yxyx", "per_mille")


def test_box_type_says_what_the_numbers_are():
    row = {"image_path": "a.png", "instruction": "close", "box_coordinates": BOX}
    found = [
        formed(osworld_records(row | {"box_type": kind}, Context("osworld")))[0]
        for kind in ("bbox", "polygon", "refusal", "odd", None)
    ]
    assert [form.box_format for form, _ in found[:2]] == ["xywh", "polygon"]
    assert found[2][0].is_refusal
    asked = {"image": "a.png", "prompt": "close", "box_type": "refusal"}
    assert found[2][1] == asked | {"solution": [], "solution_wanted": "none"}
    assert [error.cause for error in found[3:]] == ["box_type", "box_type"]
    assert found[0][1]["solution"] == BOX


@pytest.mark.parametrize(
    "row",
    [
        {"images": ["a.png"], "problem": "<image>close", "answer": "[12, 5, 40, 60]"},
        {"images": ["a.png"], "instruction": "close", "output": '{"bbox_2d": [12, 5, 40, 60]}'},
        {"image": "a.png", "prompt": [{"role": "user", "content": "close"}],
         "reward_model": {"ground_truth": "<answer>[12, 5, 40, 60]</answer>"}},
    ],
    ids=["easyr1", "alpaca", "verl"],
)  # fmt: skip
def test_answers_that_are_texts(row):
    ((_, record),) = formed(easyr1_records(row, Context("easyr1")))
    assert record == {"image": "a.png", "prompt": "close", "solution": BOX}


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("[12, 5, 40, 60]", BOX),
        ("<answer>[12, 5, 40, 60]</answer>", BOX),
        ([BOX], BOX),
        ({"bbox_2d": BOX}, BOX),
        ([{"bbox_2d": BOX}], BOX),
        ([BOX, BOX], [BOX, BOX]),
        ([1, 2, 3], [1, 2, 3]),
        (["1", "2"], ["1", "2"]),
    ],
)
def test_plain_solutions_are_unwrapped(solution, expected):
    row = {"image": ["a.png"], "prompt": "close", "solution": solution}
    ((form, record),) = formed(plain_records(row, Context()))
    assert record == {"image": "a.png", "prompt": "close", "solution": expected}
    assert (form.box_format, form.coords) == ("xyxy", "pixels")


@pytest.mark.parametrize(
    ("solution", "cause"), [(None, "solution_none"), ("see [3, 5] there", "answer_no_box")]
)
def test_plain_solutions_that_are_none(solution, cause):
    row = {"image": "a.png", "prompt": "close", "solution": solution}
    (error,) = formed(plain_records(row, Context()))
    assert error.cause == cause


@pytest.mark.parametrize("image", [None, []])
def test_a_text_without_an_image_has_no_place(image):
    row = {"image": image, "prompt": "What is 2 + 3?", "solution": None}
    ((_, record),) = formed(plain_records(row, Context()))
    assert record == row


@pytest.mark.parametrize("solution", [None, []])
def test_plain_records_say_that_nothing_is_there(solution):
    row = {"image": "a.png", "prompt": "close", "solution": solution, "solution_wanted": "none"}
    ((_, record),) = formed(plain_records(row, Context()))
    assert record == row | {"solution": []}


def test_fields_that_the_user_named_define_nothing():
    row = {"img": "a.png", "text": "close", "bbox": BOX}
    rules = Rules("img", "text", "bbox")
    ((form, record),) = formed(plain_records(row, Context(rules=rules)))
    assert record == row
    assert (form.box_format, form.coords) == (None, None)
