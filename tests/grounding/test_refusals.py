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
        "[null, null]",
        '{"point_2d": [null, null]}',
        '{"boxes": []}',
        "Not applicable.",
        "```FAIL```",
        "terminate",
        "Action: call_user()",
        '{"action_type": "status", "goal_status": "infeasible"}',
        '{"result": "negative"}',
        '{"found": false, "reason": "no button here"}',
        '[{"name": "computer_use", "arguments": {"action": "wait"}}, {"name": "terminate"}]',
        "Target not present",
        "Element not visible on the screen.",
        'There is no "Save" button in this image.',
        "There isn't a save button.",
        "Unable to locate the element.",
        "The save button is missing from the screen",
        "The task is infeasible.",
        "图中没有保存按钮",
        "目标不在图像中。",
        "无法定位该元素",
        "屏幕上未出现该图标",
        "没有对应的元素",
        "看不到这个按钮",
        "无",
        "图片中不包含该元素",
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
        "\uff3b\uff0d\uff11\uff0c\uff0d\uff11\uff3d",
        "[\u22121, \u22121]",
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
        "There is no doubt: the button at the top",
        "failing that, the menu",
        "Can you tell me which one? None of them is named.",
        '{"found": true}',
        "finished(content='done')",
        "没问题, 点击保存",
        "There is no such button, but the nearest is at (3, 4)",
    ],
)
def test_what_is_no_refusal(text):
    assert not is_refusal(parse_answer(text))


@pytest.mark.parametrize(
    "unit",
    [
        "there is no ",
        "没",
        "图",
        "[null,",
        "no ",
        "no element ",
        "[",
        "[ ",
        "bbox : ",
        "terminate ",
        "no_",
    ],
)
def test_the_longest_text_takes_no_time_to_speak_of(unit):
    assert isinstance(parse_answer((unit * 60_000)[:60_000]), (ParseFailure, Refusal))
