import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.boxes import Box, Point
from grpo_stream.grounding.answers import (
    MAX_ANSWER_CHARS,
    MAX_ANSWERS,
    REASONS,
    Answer,
    ParseFailure,
    Refusal,
    parse_answer,
    parse_answers,
)

POINT, BOX = (10, 20), (1, 2, 30, 40)
COMPUTER_USE = (
    '<tool_call>\n{"name": "computer_use", "arguments": '
    '{"action": "left_click", "coordinate": [10, 20]}}\n</tool_call>'
)
AS_STRING = '{"name": "computer_use", "arguments": "{\\"coordinate\\": [10, 20]}"}'


def read(text) -> Any:
    """parse_answer without its type, for tests that know the kind of answer."""
    return parse_answer(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        # points
        ("(10, 20)", POINT),
        ("10, 20", POINT),
        ("10,20\n", POINT),
        ("10 20", POINT),
        ("x=10, y=20", POINT),
        ("The button is at (10, 20).", POINT),
        ("(10px, 20px)", POINT),
        ("[10, 20]", POINT),
        ("(x: 10, y: 20)", POINT),
        ('{"x": 10, "y": 20}', POINT),
        ('{"point_2d": [10, 20], "label": "button 3"}', POINT),
        ('{"size": [640, 480], "point_2d": [10, 20]}', POINT),
        ("<point>10 20</point>", POINT),
        ("<point>10, 20</point>", POINT),
        ("click(x=10, y=20)", POINT),
        ("click(start_box='(10,20)')", POINT),
        ("click(point='<point>10 20</point>')", POINT),
        ("pyautogui.click(x=0.5, y=.25)", (0.5, 0.25)),
        (
            '<tool_call>\n{"name": "click", "arguments": {"coordinate": [10, 20]}}\n</tool_call>',
            POINT,
        ),
        (COMPUTER_USE, POINT),
        (AS_STRING, POINT),
        ('{"action": "left_click", "button": 1, "x": 10, "y": 20}', POINT),
        ('{"action": "click", "y": 20, "x": 10}', POINT),
        ('{"coordinate": {"x": 10, "y": 20}}', POINT),
        ('{"point": "10, 20", "button": 1}', POINT),
        ('{"point_2d": ["10", "20"]}', POINT),
        ('{"width": 640, "height": 480, "x": 10, "y": 20}', POINT),
        ('<point x="10" y="20">button 5</point>', POINT),
        ("click(start_box='<|box_start|>(10,20)<|box_end|>')", POINT),
        ("The point is x=10, y=20.", POINT),
        ("Click at 10, 20.", POINT),
        ("**(10, 20)**", POINT),
        (r"\boxed{(10, 20)}", POINT),
        ("\uff0810\uff0c20\uff09", POINT),
        ("``` \n(10, 20)\n```", POINT),
        # boxes
        ("[1, 2, 30, 40]", BOX),
        ('{"bbox": {"x1": 1, "y1": 2, "x2": 30, "y2": 40}, "label": "row 5"}', BOX),
        ('{"xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}', BOX),
        ("<box>[[1, 2, 30, 40]]</box>", BOX),
        ("the screen is 1920x1080, icon v2.5: [1, 2, 30, 40]", BOX),
        ("(1, 2, 30, 40)", BOX),
        ("1, 2, 30, 40", BOX),
        ("(1,2),(30,40)", BOX),
        ("[[1, 2], [30, 40]]", BOX),
        ('{"x1": 1, "y1": 2, "x2": 30, "y2": 40}', BOX),
        ('{"bbox_2d": [1, 2, 30, 40]}', BOX),
        ("{'bbox': [1, 2, 30, 40]}", BOX),
        ('```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "a 5"}]\n```', BOX),
        ("```\n1, 2, 30, 40\n```", BOX),
        ("<|box_start|>(1,2),(30,40)<|box_end|>", BOX),
        (
            "<|object_ref_start|>row (5, 6)<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>",
            BOX,
        ),
        # thoughts and tags
        ("<think>maybe (1, 1)</think><answer>(10, 20)</answer>", POINT),
        ("maybe (1, 1)</think>\n(10, 20)", POINT),
        ("not (1, 1) but <answer>[1, 2, 30, 40]</answer> or (2, 2)", BOX),
        ("<answer>(10, 20)", POINT),
        ("<think>is it (1, 1)?</think><think>no</think>(10, 20)", POINT),
        ("<think>is it (1, 1)?</think><answer>(10, 20)</answer></think>", POINT),
        ("<think>is it (1, 1)? <answer>(10, 20)</answer>", POINT),
        ('<think>(1, 1)</think>\n```json\n{"point_2d": [10, 20]}\n```', POINT),
        ("(10, 20)<|im_end|>", POINT),
        # numbers of all kinds
        ("(10.5, 20.25)", (10.5, 20.25)),
        ("(-10, +20)", (-10, 20)),
        ("(1e1, 2E1)", POINT),
        ("10, 20.", POINT),
        # of several answers, the first
        ("(10, 20) or (3, 4)", POINT),
        ("(10, 20), (3, 4), (5, 6)", POINT),
        ('[{"bbox_2d": [1, 2, 30, 40]}, {"bbox_2d": [5, 6, 7, 8]}]', BOX),
        ("[1, 2, 30, 40], [5, 6, 7, 8]", BOX),
    ],
)
def test_every_dress_is_understood(text, numbers):
    assert parse_answer(text) == Answer(tuple(map(float, numbers)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<think>(1, 2)</think>", "empty"),
        ("<answer></answer>", "empty"),
        ("x" * (MAX_ANSWER_CHARS + 1), "too_long"),
        ("<think>it is at (1, 2)", "unclosed_think"),
        ("(1, 2) <think>", "unclosed_think"),
        ("(12, 3", "unclosed_bracket"),
        ('{"bbox_2d": [1, 2, 3', "unclosed_bracket"),
        ("I cannot see it.", "no_numbers"),
        ("(x, y)", "no_numbers"),
        ("the 2nd of 3 buttons", "no_shape"),
        ("<think>(1, 1)</think> I cannot see it.", "no_numbers"),
        ("<think>(1, 1)</think>(2, 2)</think>", "empty"),
        ("<think>so <answer>(1, 1)", "unclosed_think"),
        ('{"x": 1, "y": 2, "width": 30, "height": 40}', "no_shape"),
        ('{"row": 1, "column": 2}', "no_shape"),
        ("from 1 to 2", "no_shape"),
        ('{"action": "click", "x": 10, "y": 2', "unclosed_bracket"),
        ("[1, 2, 3]", "wrong_count"),
        ('{"bbox_2d": [1, 2, 3]}', "wrong_count"),
        ("the answer is 7", "wrong_count"),
        ("[1, 2, 3, 4, 5]", "wrong_count"),
        ("7", "wrong_count"),
        ("(nan, 2)", "not_finite"),
        ("(1, -inf)", "not_finite"),
        ("[1, 2, Infinity, 4]", "not_finite"),
        ("(1e999, 2)", "not_finite"),
        ("(" + "9" * 400 + ", 2)", "not_finite"),
    ],
)
def test_failures_say_why(text, reason):
    assert parse_answer(text) == ParseFailure(reason)


def test_every_reason_is_in_the_table_above():
    table = test_failures_say_why.pytestmark[0].args[1]
    assert {reason for _, reason in table} == set(REASONS)


P, Q, R = (10, 20), (3, 4), (5, 6)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("(10, 20)", [P]),
        ("(10, 20) or (3, 4)", [P, Q]),
        ("1. (10, 20)\n2. (3, 4)\n3. (5, 6)", [P, Q, R]),
        ("(10, 20), (3, 4), (5, 6)", [P, Q, R]),
        ("(10, 20), (3, 4)", [(10, 20, 3, 4)]),
        ("1. (10, 20)\n2. (3, 4)", [P, Q]),
        ("1) (10, 20)\n2) (3, 4)\n3) (5, 6)", [P, Q, R]),
        ("1: [10, 20, 30, 40]\n2: [1, 2, 3, 4]", [(10, 20, 30, 40), (1, 2, 3, 4)]),
        ('[{"x": 10, "y": 20}, {"x": 3, "y": 4}]', [P, Q]),
        ("\uff08\uff11\uff10\uff0c\uff12\uff10\uff09", [P]),
        ("\uff08\uff11\uff10\u3001\uff12\uff10\uff09", [P]),
        ("[[10, 20], [3, 4], [5, 6]]", [P, Q, R]),
        ("[1, 2, 30, 40], [5, 6, 7, 8]", [BOX, (5, 6, 7, 8)]),
        ('[{"bbox_2d": [1, 2, 30, 40]}, {"bbox_2d": [5, 6, 7, 8]}]', [BOX, (5, 6, 7, 8)]),
        ('[{"point_2d": [10, 20], "label": "a"}, {"point_2d": [3, 4]}]', [P, Q]),
        ('{"size": [640, 480], "point_2d": [10, 20]} or {"point_2d": [3, 4]}', [P, Q]),
        ("<point>10 20</point><point>3 4</point>", [P, Q]),
        (
            "<|box_start|>(1,2),(30,40)<|box_end|><|box_start|>(5,6),(7,8)<|box_end|>",
            [BOX, (5, 6, 7, 8)],
        ),
        ('<point x="10" y="20">a</point><point x="3" y="4">b</point>', [P, Q]),
        ("click(x=10, y=20) then click(x=3, y=4)", [P, Q]),
        ("<answer>(10, 20)</answer><answer>(3, 4)</answer>", [P]),
        ("<think>(3, 4)</think>(10, 20)", [P]),
        ("10, 20", [P]),
        ("(10, 20) or (nan, 4) or (3, 4)", [P, Q]),
        ("(nan, 20) or (3, 4)", []),
        ("(1, 2, 3), (10, 20) or (3, 4)", [P, Q]),
        ("<point>?</point><point>3 4</point>", []),
        ("nowhere", []),
        ("", []),
    ],
)
def test_all_answers_are_read(text, places):
    found = parse_answers(text)
    assert [answer.numbers for answer in found.places] == [tuple(map(float, p)) for p in places]
    assert found.first == parse_answer(text)
    assert isinstance(found.first, ParseFailure) == (not places)


def test_as_many_answers_are_kept_as_there_may_be_boxes():
    assert len(parse_answers("(1, 2) or " * 999).places) == MAX_ANSWERS
    assert len(parse_answers("<point>1 2</point>" * 999).places) == MAX_ANSWERS


def test_point_and_box_name_the_callers_frame():
    point, box = Answer((1.0, 2.0)), Answer((0.0, 0.0, 4.0, 2.0))
    assert point.point("model") == Point(1, 2, "model")
    assert point.box("model") is None
    assert box.point("per_mille") == Point(2, 1, "per_mille")
    assert box.box("per_mille") == Box(0, 0, 4, 2, "per_mille")


def test_an_inverted_box_is_kept_as_given():
    box = read("[30, 40, 1, 2]").box("model")
    assert (box.x1, box.is_valid) == (30, False)


pieces = st.sampled_from(
    (
        *"()[]{},= \n\x00\ud800",
        *("1", "-2.5", "1e5", "nan", "é", "٣", "x=", "y1:", "word", "w", "```", '"bbox_2d": '),
        *("<think>", "</think>", "<answer>", "</answer>", "<point>", "</point>", "<|box_start|>"),
    )
)


@given(st.one_of(st.text(max_size=60), st.lists(pieces, max_size=40).map("".join)))
def test_never_raises_and_always_answers_in_kind(text):
    answers = parse_answers(text)
    answer = answers.first
    if isinstance(answer, Answer):
        assert len(answer.numbers) in (2, 4)
        assert answers.places[0] == answer
    else:
        assert answers.places == ()
        assert isinstance(answer, Refusal) or answer.reason in REASONS


@given(st.lists(st.floats(-1e9, 1e9), min_size=4, max_size=4))
def test_what_python_prints_is_read_back(numbers):
    assert parse_answer(str(numbers)) == Answer(tuple(numbers))
    assert parse_answer(str(tuple(numbers[:2]))) == Answer(tuple(numbers[:2]))


UNITS = (
    *("(", "[(", "(1,", "1", "1 ", " ", "1.", "1e", "-", "(1 ", "(1,2)", "x=", "nan", "a1", "`"),
    *("<think>", "</think>", "<answer>", "<point>", "<|", "<|box_start|>", '{"bbox_2d":'),
    *("x=1,", "{x:1,y:", "(1),", "1 a ", "\uff08", "<think>(1,2)</think>", "<answer></think>"),
)


@pytest.mark.parametrize("unit", UNITS)
def test_work_is_bounded_whatever_the_text(unit):
    # Lines of this package that run, not seconds: the same on a busy machine. Twice the text may
    # take twice the steps, never four times; a regex that goes back would hang the test instead.
    short, long = (_lines_run((unit * 200_000)[:size]) for size in (4_000, 8_000))
    assert long < 2.5 * short + 200
    assert parse_answer((unit * 200_000)[:200_000]) == ParseFailure("too_long")


@pytest.mark.parametrize("unit", [*UNITS, "9", ".", "e", "_", "<|a"])
def test_the_longest_text_takes_no_time_to_speak_of(unit):
    # Lines do not show what happens inside a regex or a conversion; a hundred times what it takes.
    start = time.perf_counter()
    parse_answer((unit * MAX_ANSWER_CHARS)[:MAX_ANSWER_CHARS])
    assert time.perf_counter() - start < 10


def test_thoughts_never_become_the_answer_whatever_they_hold():
    for text, _ in test_every_dress_is_understood.pytestmark[0].args[1]:
        if "think>" not in text:
            assert parse_answer(f"<think>{text}</think>") == ParseFailure("empty")
            assert parse_answer(f"<think>{text}</think>(5, 6)") == Answer((5.0, 6.0))
            assert parse_answer(f"{text}</think><answer>(5, 6)</answer>") == Answer((5.0, 6.0))


def _lines_run(text):
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse_answer(text)
    finally:
        sys.settrace(before)
    return count
