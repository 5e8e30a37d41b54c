import math
from dataclasses import replace

import pytest
from PIL import Image

from grpo_stream.boxes import Box, Point
from grpo_stream.report.rollout_picture import (
    MAX_ANSWERS,
    RolloutAnswer,
    RolloutGroup,
    reward_colour,
    rollout_sheet,
)

TRUTH = Box(40, 30, 80, 60, "model")
PLACE = Point(50, 40, "model")


def make_answer(reward=1.0, shape=PLACE, **changes):
    return replace(RolloutAnswer("(50, 40)", shape, reward), **changes)


def make_group(answers=None, size=(320, 200), **changes):
    image = Image.new("RGB", size, (120, 120, 120))
    group = RolloutGroup("000001", "Click on it", image, [TRUTH], answers or [make_answer()] * 4)
    return replace(group, **changes)


def colours(image):
    return {colour for _, colour in image.getcolors(1 << 20)}


def test_mean_and_standard_deviation_leave_out_what_has_no_reward():
    group = make_group([make_answer(0.0), make_answer(1.0), make_answer(math.nan)])
    assert (group.mean, group.std) == (0.5, 0.5)
    none = make_group([make_answer(math.nan)])
    assert math.isnan(none.mean)
    assert none.std == 0


@pytest.mark.parametrize(
    ("reward", "colour"),
    [(0, (215, 35, 35)), (0.5, (225, 140, 0)), (1, (20, 90, 230)), (math.nan, (95, 105, 115))],
)
def test_a_reward_has_a_colour(reward, colour):
    assert reward_colour(reward, 0, 1) == colour


def test_a_sheet_shows_truth_and_answers_in_the_colours_of_their_rewards():
    far = Point(200, 150, "model")
    group = make_group([make_answer(1.0), make_answer(0.0, far), make_answer(0.5, None)])
    found = colours(rollout_sheet("Rollouts", "of rank 0", [group]))
    assert {(0, 150, 80), (20, 90, 230), (215, 35, 35), (225, 140, 0)} <= found


def test_the_colours_go_as_far_as_the_rewards():
    group = make_group([make_answer(-1.0), make_answer(3.0)])
    sheet = rollout_sheet("Rollouts", "", [group])
    assert {reward_colour(-1, -1, 3), reward_colour(3, -1, 3)} <= colours(sheet)


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("size", [(320, 200), (390, 844), (1920, 1080), (28, 28)])
def test_any_number_of_groups_of_images_of_any_size(num_groups, size):
    sheet = rollout_sheet("Rollouts", "", [make_group(size=size)] * num_groups)
    assert sheet.width == (664 if num_groups == 1 else 1316)
    assert sheet.height > 400 * -(-num_groups // 2)


@pytest.mark.parametrize(
    "answer",
    [
        make_answer(text="", shape=None, failure="empty", reward=0.0),
        make_answer(text="\x00\u202eword " * 500, shape=None, failure="no_numbers"),
        make_answer(shape=Point(-1e9, 1e9, "model")),
        make_answer(shape=Box(90, 10, 20, 5, "model")),
        make_answer(shape=Box(0, 0, 320, 200, "model")),
        make_answer(parts=[("a" * 80, 1.0), ("b", math.nan), ("c", -2.0), ("d", 1), ("e", 1)]),
        make_answer(math.nan),
    ],
)
def test_whatever_a_model_answers_can_be_drawn(answer):
    assert rollout_sheet("Rollouts", "", [make_group([answer] * (MAX_ANSWERS + 4))]).height > 400


def test_several_places_and_none_have_their_cards():
    far = Box(200, 150, 260, 180, "model")
    answers = [make_answer(1.0, TRUTH, more_shapes=[far]), make_answer(0.0, None, is_refusal=True)]
    several = rollout_sheet("", "", [make_group(answers, truths=[TRUTH, Box(90, 90, 140, 120)])])
    one = rollout_sheet("", "", [make_group(answers, truths=[TRUTH])])
    none = rollout_sheet("", "", [make_group(answers[1:], truths=[])])
    assert several.tobytes() != one.tobytes()
    assert (0, 150, 80) in colours(none)
