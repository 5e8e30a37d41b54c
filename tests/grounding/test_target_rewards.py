"""Rewards of targets that are not one box: several, all of several, polygons, none."""

import functools
import math
from typing import Any

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.rewards import (
    REWARDS,
    accuracy_reward_coord,
    answer_count_reward,
    distance_reward,
    format_reward,
    gaussian_reward,
    giou_reward,
    iou_reward,
    load_reward,
    refusal_reward,
    set_reward,
)

A, B, C = [0, 0, 10, 10], [20, 0, 40, 10], [0, 50, 10, 60]
TRIANGLE = [0, 0, 40, 0, 0, 40]
ELL = [0, 0, 60, 0, 60, 20, 20, 20, 20, 60, 0, 60]


def reward(function, text, truth, wanted=None):
    (value,) = function(
        completions=[text],
        solution=[truth],
        scales=[(100, 100)],
        answer_frame="original",
        solution_wanted=[wanted],
    )
    return value


@pytest.mark.parametrize(
    ("text", "truth", "accuracy", "iou", "giou", "gaussian"),
    [
        pytest.param("(5, 5)", [A, B], 1, 0, -1, 1, id="the first"),
        pytest.param("(30, 5)", [A, B], 1, 0, -1, 1, id="the second"),
        pytest.param("(15, 5)", [A, B], 0, 0, -1, math.exp(-1.125), id="between"),
        pytest.param("[20, 0, 40, 10]", [A, B], 1, 1, 1, 1, id="the very second"),
        pytest.param("[0, 0, 40, 10]", [A, B], 1, 0.5, 0.5, math.exp(-0.5), id="over both"),
        pytest.param("(5, 5), or (30, 5)", [B, C], 0, 0, -1, None, id="the first answer counts"),
        pytest.param("(5, 5)", [A], 1, 0, -1, 1, id="a list of one"),
        pytest.param("(9, 9)", TRIANGLE, 1, 0, -1, None, id="in a triangle"),
        pytest.param("(21, 21)", TRIANGLE, 0, 0, -1, None, id="in its bounds alone"),
        pytest.param("(20, 20)", TRIANGLE, 0, 0, -1, 1, id="the middle of its bounds"),
        pytest.param("[0, 0, 40, 40]", TRIANGLE, 0, 0.5, 0.5, 1, id="its bounds"),
        pytest.param("[0, 0, 20, 20]", TRIANGLE, 1, 0.5, None, None, id="half of it"),
        pytest.param("[60, 60, 80, 80]", TRIANGLE, 0, 0, -0.8125, None, id="beside it"),
        pytest.param("(30, 30)", ELL, 0, 0, -1, 1, id="in the hollow of an L"),
        pytest.param("[20, 20, 60, 60]", ELL, 0, 0, None, None, id="the hollow of an L"),
        pytest.param("[10, 10, 30, 30]", ELL, 0, 300 / 2100, None, None, id="its corner"),
        pytest.param("(5, 5)", [TRIANGLE, [80, 80, 90, 90]], 1, 0, -1, None, id="mixed"),
        pytest.param("not found", [A, B], 0, 0, -1, 0, id="a refusal"),
    ],
)
def test_of_several_any_counts_and_polygons_are_regions(text, truth, accuracy, iou, giou, gaussian):
    assert reward(accuracy_reward_coord, text, truth) == accuracy
    assert reward(iou_reward, text, truth) == pytest.approx(iou)
    if giou is not None:
        assert reward(giou_reward, text, truth) == pytest.approx(giou)
    if gaussian is not None:
        assert reward(gaussian_reward, text, truth) == pytest.approx(gaussian)


def test_places_that_cannot_be_scored_leave_the_others():
    assert reward(accuracy_reward_coord, "(5, 5)", [[3, 3], A]) == 1
    assert reward(accuracy_reward_coord, "(3, 3)", [[3, 3], B]) == 0
    near = functools.partial(accuracy_reward_coord, point_radius=0.05)
    assert reward(near, "(7, 3)", [[3, 3], B]) == 1
    assert reward(iou_reward, "[20, 0, 40, 10]", [[3, 3], [1, 1, 1, 9], B]) == 1
    assert reward(distance_reward, "(30, 5)", [[90, 90], B]) == 1


@pytest.mark.parametrize(
    ("text", "truth", "wanted", "value"),
    [
        ("not found", [], None, 1),
        ("[-1, -1]", [], "none", 1),
        ('{"bbox_2d": []}', [], "none", 1),
        ("(5, 5)", [], None, 0),
        ("I wonder", [], None, 0),
        ("", [], "none", 0),
        ("not found", A, None, None),
        ("(5, 5)", A, None, None),
        ("not found", [A, B], "all", None),
    ],
)
def test_a_refusal_is_right_where_nothing_is_there(text, truth, wanted, value):
    assert reward(refusal_reward, text, truth, wanted) == value


def test_a_refusal_elsewhere_may_cost():
    dear = functools.partial(refusal_reward, penalty=0.5)
    assert [reward(dear, text, A) for text in ("none", "[-1, -1]", "(5, 5)", "?")] == [
        -0.5,
        -0.5,
        None,
        None,
    ]
    assert reward(dear, "none", []) == 1


@pytest.mark.parametrize(("truth", "wanted"), [([], None), ([A, B], "all")])
def test_rewards_of_one_answer_do_not_apply(truth, wanted):
    for function in (
        accuracy_reward_coord,
        iou_reward,
        giou_reward,
        distance_reward,
        gaussian_reward,
        answer_count_reward,
    ):
        assert reward(function, "(5, 5)", truth, wanted) is None


BOTH = '[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [20, 0, 40, 10]}]'


@pytest.mark.parametrize(
    ("text", "truth", "wanted", "by_iou", "by_hit"),
    [
        pytest.param(BOTH, [A, B], "all", 1, 1, id="both"),
        pytest.param(BOTH, [B, A], "all", 1, 1, id="the other way round"),
        pytest.param(BOTH, [A, B, C], "all", 0.8, 0.8, id="two of three"),
        pytest.param(BOTH, [A, C], "all", 0.5, 0.5, id="one right, one wrong"),
        pytest.param(BOTH, A, None, 2 / 3, 2 / 3, id="one too many"),
        pytest.param("[0, 0, 10, 10]", [A, B], "all", 2 / 3, 2 / 3, id="one missing"),
        pytest.param("[0, 0, 10, 10] and [0, 0, 10, 9]", [A, B], "all", 0.5, 0.5, id="one twice"),
        pytest.param("[0, 0, 10, 4]", A, None, 0, 1, id="too small"),
        pytest.param("[0, 0, 10, 5]", A, None, 1, 1, id="half"),
        pytest.param("(5, 5) or (30, 5)", [A, B], "all", 0, 1, id="points"),
        pytest.param("[0, 0, 40, 40]", TRIANGLE, None, 1, 0, id="a polygon"),
        pytest.param("nowhere", [A, B], "all", 0, 0, id="no answer"),
        pytest.param("not found", [A, B], "all", 0, 0, id="a refusal"),
        pytest.param("[-1, -1], [0, 0, 10, 10]", A, None, 0, 0, id="nothing after a refusal"),
        pytest.param(BOTH, [A, B], "any", None, None, id="any counts"),
        pytest.param(BOTH, [], None, None, None, id="nothing is there"),
        pytest.param(BOTH, [[3, 3], [30, 3]], "all", None, None, id="points without a radius"),
    ],
)
def test_a_set_is_matched_one_to_one(text, truth, wanted, by_iou, by_hit):
    assert reward(set_reward, text, truth, wanted) == by_iou
    assert reward(functools.partial(set_reward, by="hit"), text, truth, wanted) == by_hit


def test_no_order_costs_a_pair():
    # The first answer fits both places, the second the first place alone.
    wide, text = [0, 0, 30, 10], "[0, 0, 20, 10] and [0, 0, 10, 10]"
    for truth in ([[0, 0, 10, 10], wide], [wide, [0, 0, 10, 10]]):
        assert reward(set_reward, text, truth, "all") == 1


def test_true_points_are_matched_by_hits():
    near = functools.partial(set_reward, by="hit", point_radius=0.05)
    assert reward(near, "(5, 5) or (90, 90)", [[3, 3], [88, 90]], "all") == 1
    assert reward(near, "(5, 5) or (5, 4)", [[3, 3], [88, 90]], "all") == 0.5


@pytest.mark.parametrize(
    ("text", "truth", "value"),
    [
        ("(5, 5)", A, 1),
        ("(5, 5)", [A, B], 1),
        ("(90, 90)", A, -1),
        ("(5, 5) or (90, 90)", A, 1 / math.sqrt(2)),
        ("(90, 90) or (5, 5)", A, 1 / 2),
        ("(90, 90) or (80, 90) or (5, 5)", A, 1 / 3),
        ("(90, 90) or (80, 90) or (70, 90)", A, -1 / 3),
        ("(90, 90) or (80, 90) or (70, 90) or (60, 90)", A, -1 / 4),
        ("(90, 90) or (5, 5) or (6, 6) or (1, 80)", A, 1 / math.sqrt(8)),
        ("[0, 0, 10, 10]", A, 1),
        ("nowhere", A, -1),
        ("not found", A, -1),
        ("[-1, -1] or (5, 5)", A, -1 / 2),
        ("(5, 5)", [3, 3], None),
    ],
)
def test_ranked_answers_earn_by_the_first_that_hits(text, truth, value):
    found = reward(answer_count_reward, text, truth)
    assert found == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("refusal_reward(penalty=-1)", "penalty"),
        ("set_reward(by='area')", "by"),
        ("set_reward(threshold=0)", "threshold"),
        ("set_reward(point_radius=-1)", "point_radius"),
        ("answer_count_reward(point_radius=0)", "point_radius"),
    ],
)
def test_parameters_that_cannot_be_are_named(name, field):
    with pytest.raises(ConfigError) as caught:
        load_reward(name)
    assert caught.value.field == field


def test_what_is_wanted_must_be_a_word_that_is_known():
    with pytest.raises(ConfigError, match="must be any, all or none"):
        reward(iou_reward, "(5, 5)", [A, B], "each")


def test_records_with_and_without_the_field_share_a_batch():
    texts, truths = ["(5, 5)"] * 3, [A, [A, B], []]
    for function in REWARDS.values():
        values = function(
            completions=texts,
            solution=truths,
            scales=[(100, 100)] * 3,
            answer_frame="original",
            solution_wanted=[None, "all", "none"],
            completion_ids=[[1]] * 3,
        )
        assert len(values) == 3


class TestImages:
    """Samples of several images and of none, beside one of one image."""

    COLUMNS: dict[str, Any] = {  # noqa: RUF012
        "solution": [[100, 0, 120, 10], [[0, 0, 10, 10], [150, 50, 200, 100]], [10, 0, 20, 10], []],
        "scales": [[(100, 100), (200, 100)], [(100, 100), (200, 100)], (100, 100), []],
        "model_size": [[(50, 50), (50, 50)], [(50, 50), (50, 50)], (50, 50), []],
        "solution_images": [[1], [0, 1], None, None],
        "answer_frame": ["model"] * 4,
    }

    def rewards(self, function, *texts, **changes):
        return function(completions=list(texts), **(self.COLUMNS | changes))

    def test_an_answer_is_read_in_the_image_of_its_place(self):
        texts = ["(27, 2)", "(40, 40)", "(7, 2)", "5"]
        assert self.rewards(accuracy_reward_coord, *texts) == [1, 1, 1, None]
        missed = ["(54, 2)", "(40, 20)", "(27, 2)", "5"]
        assert self.rewards(accuracy_reward_coord, *missed) == [0, 0, 0, None]

    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            (iou_reward, [1, 1, 1, None]),
            (giou_reward, [1, 1, 1, None]),
            (distance_reward, [1, 1, 1, None]),
            (gaussian_reward, [1, 1, 1, None]),
            (answer_count_reward, [1, 1, 1, None]),
            (refusal_reward, [None] * 4),
        ],
    )
    def test_the_very_boxes(self, function, expected):
        texts = ["[25, 0, 30, 5]", "[37.5, 25, 50, 50]", "[5, 0, 10, 5]", "[1, 2, 3, 4]"]
        assert self.rewards(function, *texts) == expected

    def test_all_of_several_images(self):
        wanted = {"solution_wanted": [None, "all", None, None]}
        both = "[0, 0, 5, 5] and [37.5, 25, 50, 50]"
        found = self.rewards(set_reward, "(1, 1)", both, "(1, 1)", "5", **wanted)
        assert found == [0, 1, 0, None]
        one = self.rewards(set_reward, "(1, 1)", "[0, 0, 5, 5]", "(1, 1)", "5", **wanted)
        assert one[1] == pytest.approx(2 / 3)

    def test_a_refusal_that_is_asked_for_without_an_image(self):
        wanted = {"solution_wanted": [None, None, None, "none"]}
        texts = ["no", "no", "no", "There is no such door."]
        assert self.rewards(refusal_reward, *texts, **wanted) == [None, None, None, 1]

    def test_the_form_of_an_answer_is_asked_for_with_an_image_alone(self):
        texts = ["(1, 2)", "[1, 2, 3, 4]", "nothing", "(1, 2)"]
        columns = {"template": "point", "scales": self.COLUMNS["scales"]}
        assert format_reward(completions=texts, **columns) == [1, 0, 0, None]
        assert format_reward(completions=texts, scales=columns["scales"]) == [1, 1, 0, None]

    def test_places_of_no_image(self):
        with pytest.raises(ConfigError, match=r"must name one of 2 images for each of 1 places"):
            self.rewards(iou_reward, *["(1, 2)"] * 4, solution_images=[[2], [0, 1], None, None])
        with pytest.raises(ConfigError, match=r"solution_images=None: is needed, .* has 2 images"):
            self.rewards(iou_reward, *["(1, 2)"] * 4, solution_images=None)
        with pytest.raises(ConfigError, match=r"model_size"):
            self.rewards(iou_reward, *["(1, 2)"] * 4, model_size=None)
