import pytest

from grpo_stream.grounding.answers import Answer, ParseFailure, Refusal, is_refusal, parse_answer
from grpo_stream.grounding.answers import parse_answers as read_all

TERMINATE = '{"name": "computer_use", "arguments": {"action": "terminate", "status": "failure"}}'


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "None.",
        "N/A",
        "refusal",
        "[]",
        "[[]]",
        "```json\n[]\n```",
        '{"bbox_2d": []}',
        '{"bbox_2d": null, "label": "save"}',
        '```json\n[{"point_2d": null}]\n```',
        '{"name": "computer_use", "arguments": "{\\"coordinate\\": null}"}',
        f"<tool_call>\n{TERMINATE}\n</tool_call>",
        "terminate()",
        "computer.terminate(status='failure')",
        '{"action": "terminate", "status": "success"}',
        "not found",
        "target_not_found",
        "Element not found in the screenshot.",
        "There is no such element.",
        "No matching element was found.",
        "no element found",
        "No target.",
        "I could not find the button.",
        "The icon does not exist in this image.",
        "It isn't visible.",
        "The button is not in the image.",
        "\u672a\u627e\u5230\u8be5\u5143\u7d20",
        "The 2nd of 3 buttons was not found.",
        "<think>is it at (1, 2)?</think><answer>not found</answer>",
        "<point>not found</point>",
    ],
)
def test_a_refusal_in_words_is_read(text):
    assert parse_answer(text) == Refusal()
    assert read_all(text).is_refusal
    assert read_all(text).places == ()


@pytest.mark.parametrize(
    "text",
    [
        "[-1, -1]",
        "(-1.0, -1)",
        "[-1, -1, -1, -1]",
        '{"point_2d": [-1, -1]}',
        "<answer>(-1, -1)</answer>",
        '{"action": "terminate", "coordinate": [-1, -1]}',
        "(-1, -1), or maybe at (3, 4)",
    ],
)
def test_a_refusal_in_numbers_has_them(text):
    found = parse_answer(text)
    assert isinstance(found, Answer)
    assert is_refusal(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(10, 20)",
        "[-1, 5]",
        "The first one was not found, so (10, 20)",
        "I cannot see it.",
        "maybe",
        "[1, 2, 3] not found",
        "not found (1, ",
        "<think>not found</think>",
        "it is found",
        "nonetheless",
        "a nullable type",
        "determinate (",
    ],
)
def test_what_is_no_refusal(text):
    assert not is_refusal(parse_answer(text))


@pytest.mark.parametrize("unit", ["no ", "no element ", "[", "[ ", "bbox : ", "terminate ", "no_"])
def test_the_longest_text_takes_no_time_to_speak_of(unit):
    assert isinstance(parse_answer((unit * 60_000)[:60_000]), (ParseFailure, Refusal))
