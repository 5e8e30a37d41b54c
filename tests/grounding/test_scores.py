import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.rewards import accuracy_reward_coord, iou_reward
from grpo_stream.grounding.scores import FAILURES, ScoredAnswer, score_answer
from tests.grounding.support import IMAGE, answer

BOX = (100, 100, 200, 200)

# text, failure, point, box, hit, IoU, distance
CASES = [
    ("(150, 150)", None, (150, 150), None, True, 0, 0),
    ("(120, 110)", None, (120, 110), None, True, 0, 0.1),
    ("(200, 150)", None, (200, 150), None, False, 0, 0.1),
    ("(150, 450)", None, (150, 450), None, False, 0, 0.6),
    ("(1e6, 150)", None, (1e6, 150), None, False, 0, 1),
    ("[100, 100, 200, 200]", None, (150, 150), BOX, True, 1, 0),
    ("[100, 100, 200, 150]", None, (150, 125), (100, 100, 200, 150), True, 0.5, 0.05),
    ("[0, 0, 400, 300]", None, (200, 150), (0, 0, 400, 300), False, 1 / 12, 0.1),
    ("[200, 200, 100, 100]", "invalid_box", None, None, False, 0, None),
    ("[150, 150, 150, 150]", "invalid_box", None, None, False, 0, None),
    ("nowhere", "no_numbers", None, None, False, 0, None),
    ("", "empty", None, None, False, 0, None),
    ("(1, 2, 3)", "wrong_count", None, None, False, 0, None),
]


@pytest.mark.parametrize(("text", "failure", "point", "box", "hit", "iou", "distance"), CASES)
def test_a_true_box(text, failure, point, box, hit, iou, distance):
    found = answer(text, BOX)
    assert (found.failure, found.point, found.box) == (failure, point, box)
    assert found.is_hit is hit
    assert found.iou == pytest.approx(iou)
    assert found.distance == (None if distance is None else pytest.approx(distance))


@pytest.mark.parametrize(
    ("text", "hit"), [("(110, 100)", True), ("(126, 100)", False), ("", False)]
)
def test_a_true_point_is_hit_within_the_radius(text, hit):
    found = answer(text, (100, 100), point_radius=0.05)
    assert (found.is_hit, found.iou, found.size) == (hit, None, "point")


def test_a_true_point_needs_a_radius():
    with pytest.raises(ConfigError, match=r"accuracy needs boxes.*point_radius=0\.05"):
        answer("(1, 2)", (100, 100))


def test_a_true_box_without_area_is_not_scored():
    found = answer("(100, 120)", (100, 100, 100, 200))
    assert (found.is_hit, found.iou) == (None, None)
    assert found.failure is None


@pytest.mark.parametrize(
    ("side", "name"),
    [(9.9, "tiny"), (10, "small"), (31, "small"), (32, "medium"), (100, "large"), (317, "huge")],
)
def test_sizes_are_shares_of_the_image(side, name):
    assert answer("", (0, 0, side, side), size=Size(1000, 1000)).size == name


@pytest.mark.parametrize(
    ("frame", "point"), [("original", (60, 30)), ("model", (120, 60)), ("per_mille", (24, 9))]
)
def test_answers_are_brought_to_the_originals_frame(frame, point):
    found = score_answer(
        "(60, 30)",
        BOX,
        key="k",
        prompt="p",
        scales=IMAGE,
        model_size=Size(200, 150),
        answer_frame=frame,
    )
    assert found.point == pytest.approx(point)


@given(
    st.one_of(
        st.text(max_size=30),
        st.lists(st.floats(width=16) | st.integers(-9, 500), min_size=1, max_size=5).map(str),
        st.lists(st.sampled_from([1e308, -1e308, 150, 199.9]), min_size=2, max_size=4).map(str),
    )
)
def test_scores_agree_with_the_rewards_whatever_is_answered(text):
    found = answer(text, BOX)
    columns: tuple[Any, ...] = ([text], [BOX], [IMAGE], None, "original")
    assert [float(bool(found.is_hit))] == accuracy_reward_coord(*columns)
    assert [found.iou] == iou_reward(*columns)
    assert (found.failure is None) == (found.point is not None) == (found.distance is not None)
    assert found.failure is None or found.failure in FAILURES
    assert found.distance is None or 0 <= found.distance <= 1


def test_a_journey_through_json_changes_nothing():
    for text, *_ in CASES:
        found = answer(text, BOX, fields={"element.role": "link", "n": 3})
        assert ScoredAnswer.from_dict(json.loads(json.dumps(found.to_dict()))) == found
