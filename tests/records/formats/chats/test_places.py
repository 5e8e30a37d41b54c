"""What an answer's text is: a place in a form that says so, or none."""

import pytest

from grpo_stream.records.formats.chats.places import places_in

BOX = [12, 5, 40, 60]


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("click(start_box='(12,5)')", [12, 5]),
        ("Thought: here.\nAction: click(start_box='<|box_start|>(12,5)<|box_end|>')", [12, 5]),
        ("click(point='<point>12 5</point>')", [12, 5]),
        ("left_double(start_box='[12, 5, 40, 60]')", BOX),
        ("pyautogui.click(x=0.25, y=0.5)", [0.25, 0.5]),
        ("pyautogui.moveTo(12, 5)\npyautogui.click()", [12, 5]),
        ("pyautogui.doubleClick(12, 5, button='left')", [12, 5]),
        ("tap(12, 5)", [12, 5]),
        ("CLICK <point>[[12, 5]]</point>", [12, 5]),
        ('{"action": "CLICK", "position": [0.25, 0.5]}', [0.25, 0.5]),
        ('{"action": {"type": "click", "x": 12, "y": 5}}', [12, 5]),
        ('<tool_call>{"arguments": {"action": "tap", "coordinate": [12, 5]}}</tool_call>', [12, 5]),
        ('The key: {"bbox_2d": [12, 5, 40, 60], "label": "key"}.', BOX),
        ('{"x1": 12, "y1": 5, "x2": 40, "y2": 60}', BOX),
        ("<box>[[12, 5, 40, 60]]</box>", BOX),
        ("[[012,005,040,060]]", BOX),
        ("[12, 5, 40, 60]\n", BOX),
        ("(12, 5, 40, 60)", BOX),
        ({"bbox": "12, 5, 40, 60"}, BOX),
    ],
)  # fmt: skip
def test_places(answer, numbers):
    places = places_in(answer)
    assert places is not None
    assert places.numbers == [numbers]


@pytest.mark.parametrize(
    "answer",
    [
        "scroll(direction='down')",
        "scroll(point='<point>12 5</point>', direction='down')",
        "drag(start_box='(1,2)', end_box='(3,4)')",
        "type(content='[12, 5]')",
        "finished(content='done')",
        "pyautogui.write(message='lantern')",
        "pyautogui.click(x=1, y=2)\npyautogui.write('a')",
        '{"action": "TYPE", "value": "a", "position": [0.1, 0.2]}',
        '{"name": "scroll", "arguments": {"x": 1, "y": 2}}',
        "Earlier notes, see [3, 5], back it up.",
        "It points to pages [4, 8, 15, 16] of the handbook.",
        "The lots [12, 7] and [31, 40].",
        "[20, 50, 100]",
        '["12", "5"]',
        "rgb(12, 5, 40)",
        "Not found.",
        "",
        {},
    ],
)
def test_answers_without_a_place(answer):
    assert places_in(answer) is None


@pytest.mark.parametrize(
    ("answer", "defined"),
    [
        ("<|box_start|>(12,5),(40,60)<|box_end|>", ("xyxy", "per_mille")),
        ("<|ref|>key<|/ref|><|det|>[[12, 5, 40, 60]]<|/det|>", ("xyxy", "per_mille")),
        ("key<loc_12><loc_5><loc_40><loc_60>", ("xyxy", "per_mille")),
        ("<box>(12,5),(40,60)</box>", ("xyxy", "per_mille")),
        ("<box>[[12, 5, 40, 60]]</box>", ("xyxy", "per_mille")),
        ("<box>12,5,40,60</box>", (None, None)),
        ("<box>[12, 5, 40, 60]</box>", (None, None)),
        ('```json\n[{"box_2d": [5, 12, 60, 40]}]\n```', ("yxyx", "per_mille")),
        ('{"x": 1, "y": 2, "width": 3, "height": 4}', ("xywh", None)),
        ('{"bbox_2d": [12, 5, 40, 60]}', (None, None)),
    ],
)
def test_what_the_way_of_writing_defines(answer, defined):
    places = places_in(answer)
    assert places is not None
    assert (places.kind.box_format, places.kind.coords) == defined
    assert sorted(places.numbers[0]) in (sorted(BOX), [1, 2, 3, 4])


def test_a_box_in_a_sentence_is_warned_of():
    places = places_in("The bounding box is [12, 5, 40, 60].")
    assert places is not None
    assert places.numbers == [BOX]
    assert places.kind.warning is not None
    pair = places_in("[3, 5]")
    assert pair is not None
    assert pair.kind.warning is not None
