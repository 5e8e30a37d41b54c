"""Figures of refusals, sets, closer looks and sampled answers."""

import json

import pytest

from grpo_stream.grounding.evaluation.answer_metrics import (
    first_look_of,
    is_right,
    metrics_of,
    pass_at,
    with_first_look,
    with_samples,
)
from grpo_stream.grounding.evaluation.evaluation_metrics import compare_answers, evaluation_figures
from grpo_stream.grounding.scores import ScoredAnswer
from tests.grounding.support import answer

BOX, OTHER = (100, 100, 200, 200), (300, 0, 400, 100)
BOTH = "[100, 100, 200, 200] and [300, 0, 400, 100]"
MIXED = [
    answer("(150, 150)", BOX, key="a", image="1"),  # a hit
    answer("not found", BOX, key="b", image="2"),  # a false refusal
    answer("nothing", BOX, key="c", image="3"),  # unreadable
    answer("[-1, -1]", (), key="d", image="4"),  # a right refusal
    answer("(150, 150)", (), key="e", image="5"),  # a place where nothing is
    answer(BOTH, (BOX, OTHER), wanted="all", key="f", image="6"),  # a whole set
    answer("[100, 100, 200, 200]", (BOX, OTHER), wanted="all", key="g", image="7"),
    answer("(350, 50)", (BOX, OTHER), key="h", image="8"),  # any of them
]


def test_refusals_apart_and_together():
    figures = evaluation_figures(MIXED, (), asks_boxes=True, num_resamples=100)["figures"]
    found = {n: f["value"] for n, f in figures.items() if isinstance(f, dict)}
    counts = {n: f["num_samples"] for n, f in figures.items() if isinstance(f, dict)}
    assert (found["point_accuracy"], counts["point_accuracy"]) == (2 / 4, 4)
    assert (found["with_refusals"], counts["with_refusals"]) == (4 / 8, 8)
    assert (found["refusal_accuracy"], counts["refusal_accuracy"]) == (1 / 2, 2)
    assert (found["false_refusals"], counts["false_refusals"]) == (1 / 6, 6)
    assert (found["set_f1"], counts["set_f1"]) == (pytest.approx((1 + 2 / 3) / 2), 2)
    assert found["parse_failures"] == 1 / 8
    assert counts["mean_iou"] == 4


def test_the_kinds_are_slices_by_size():
    slices = evaluation_figures(MIXED, (), asks_boxes=True, num_resamples=100)["slices"]
    (sizes,) = slices.values()
    assert [(part["name"], part["num_samples"]) for part in sizes] == [
        ("not there", 2),
        ("large", 6),
    ]


def test_what_is_right():
    assert [is_right(one) for one in MIXED] == [True, False, False, True, False, True, False, True]


@pytest.mark.parametrize(
    ("k", "num_right", "num_samples", "chance"),
    [
        (1, 1, 4, 1 / 4),
        (2, 1, 4, 1 / 2),
        (4, 1, 4, 1),
        (2, 2, 4, 5 / 6),
        (3, 0, 4, 0),
        (1, 4, 4, 1),
    ],
)
def test_pass_at_k_is_the_chance_of_a_right_one(k, num_right, num_samples, chance):
    assert pass_at(k, num_right, num_samples) == pytest.approx(chance)


def sampled(texts, key):
    given = [answer(text, BOX, key=key, image=key) for text in texts]
    return with_samples(given[0], given)


def test_pass_at_k_is_a_figure_with_an_interval():
    answers = [
        sampled(["(150, 150)", "(1, 1)", "(2, 2)"], "a"),
        sampled(["(1, 1)"] * 3, "b"),
        sampled(["(150, 150)"] * 3, "c"),
    ]
    assert [name for name in metrics_of(answers) if name.startswith("pass")] == [
        "pass_1",
        "pass_2",
        "pass_3",
    ]
    figures = evaluation_figures(answers, (), asks_boxes=False, num_resamples=100)["figures"]
    assert figures["pass_1"]["value"] == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert figures["pass_2"]["value"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert figures["pass_3"]["value"] == pytest.approx(2 / 3)
    assert figures["pass_2"]["low"] <= figures["pass_2"]["value"] <= figures["pass_2"]["high"]


def test_both_looks_are_kept_and_compared():
    first, second = answer("(1, 1)", BOX), answer("(150, 150)", BOX)
    both = with_first_look(second, first, (0, 0, 200, 150))
    assert both.is_hit
    assert both.first_look is not None
    assert both.first_look["region"] == [0, 0, 200, 150]
    again = ScoredAnswer.from_dict(json.loads(json.dumps(both.to_dict())))
    assert first_look_of(again).is_hit is False
    assert first_look_of(first) == first
    found = compare_answers([both], [first_look_of(both)], asks_boxes=False, num_resamples=100)
    assert found["num_gained"] == 1
    assert found["differences"]["point_accuracy"]["value"] == 1


def test_older_lines_are_read():
    row = answer("(150, 150)", BOX).to_dict()
    later = ("wanted", "is_refusal", "set_f1", "more_places", "first_look", "sampled")
    older = {name: value for name, value in row.items() if name not in later}
    assert ScoredAnswer.from_dict(older) == answer("(150, 150)", BOX)


@pytest.mark.parametrize("one", MIXED, ids=lambda one: one.key)
def test_a_journey_through_json_changes_nothing(one):
    assert ScoredAnswer.from_dict(json.loads(json.dumps(one.to_dict()))) == one
