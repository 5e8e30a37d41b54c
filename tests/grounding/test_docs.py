"""docs/rewards.md says what the code does: answers are read, reasons and values are right."""

import re
from pathlib import Path

import pytest

from grpo_stream.grounding.answers import (
    REASONS,
    Answer,
    ParseFailure,
    is_refusal,
    parse_answer,
    parse_answers,
)
from grpo_stream.grounding.prompts import TEMPLATES
from grpo_stream.grounding.rewards import REWARDS, load_reward

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def section(start, end):
    return PAGE[PAGE.index(start) : PAGE.index(end)]


def rows(text):
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in lines[2:]]


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        ("All of these are the point", "and these the box", (10, 20)),
        ("and these the box", "- What is inside", (1, 2, 30, 40)),
    ],
)
def test_answers_are_read(start, end, numbers):
    shown = [line for line in section(start, end).splitlines() if line.startswith("    ")]
    texts = [text for line in shown for text in re.split(r" {2,}", line.strip())]
    assert len(texts) >= 5
    for text in texts:
        assert parse_answer(text) == Answer(tuple(map(float, numbers))), text


def test_all_answers_of_a_text_are_read():
    table = rows(section("| text | answers |", "**Refusals.**"))
    assert len(table) == 6
    for text, shown in table:
        expected = [tuple(map(float, one.split(","))) for one in re.findall(r"\((.*?)\)", shown)]
        assert [a.numbers for a in parse_answers(text.strip("`")).places] == expected


def test_refusals_are_read():
    shown = [
        line
        for line in section("All of these do", "- In words it is").splitlines()
        if line.startswith("    ")
    ]
    texts = [text for line in shown for text in re.split(r" {2,}", line.strip())]
    assert len(texts) >= 15
    for text in texts:
        assert is_refusal(parse_answer(text)), text


def test_values_of_several_places():
    names = ["accuracy_reward_coord", "iou_reward", "set_reward", "answer_count_reward"]
    table = rows(section("| answer | wanted |", "- Numbers are real"))
    assert len(table) == 6
    for answer, wanted, *values in table:
        for name, value in zip(names, values, strict=True):
            (given,) = REWARDS[name](
                completions=[answer.strip("`")],
                solution=[[[352, 442, 672, 480], [352, 500, 672, 538]]],
                scales=[(1024, 768)],
                answer_frame="original",
                solution_wanted=[wanted],
            )
            expected = None if value == "-" else pytest.approx(float(value), abs=6e-4)
            assert given == expected, (answer, name)


def test_reasons_are_those_there_are():
    table = rows(section("| reason |", "A run cut off"))
    assert [row[0].strip("`") for row in table] == list(REASONS)
    for reason, _, example in table:
        if example:
            assert parse_answer(example.strip("`")) == ParseFailure(reason.strip("`"))


def test_values_are_what_the_rewards_give():
    names = ["accuracy_reward_coord", "iou_reward", "giou_reward"]
    names += ["distance_reward", "gaussian_reward"]
    table = rows(section("| answer | accuracy", "For the two boxes"))
    assert len(table) == 9
    for answer, *values in table:
        for name, value in zip(names, values, strict=True):
            (given,) = REWARDS[name](
                completions=[answer.split("`")[1]],
                solution=[[352, 442, 672, 480]],
                scales=[(1024, 768)],
                answer_frame="original",
            )
            assert given == pytest.approx(float(value), abs=6e-4), (answer, name)


def test_names_and_parameters_are_known():
    assert [row[0].strip("`") for row in rows(section("| reward |", "![What"))] == list(REWARDS)
    for name in re.findall(r"^  - (\w+\(.*?\))", PAGE, flags=re.MULTILINE):
        load_reward(name)
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows(section("| name |", "All but"))))
    assert set(named) <= set(TEMPLATES)
