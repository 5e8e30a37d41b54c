import functools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.grounding.answers import REASONS
from grpo_stream.grounding.rewards import (
    REWARDS,
    accuracy_reward_coord,
    distance_reward,
    format_reward,
    gaussian_reward,
    iou_reward,
    load_reward,
    named_reward,
)

BOX = [20, 20, 60, 40]  # centre (40, 30), in an image of 100 x 100 unless told


def reward(function, text, truth=BOX, frame="original", original=(100, 100), model=(100, 100)):
    (value,) = function(
        completions=[text],
        solution=[truth],
        scales=[original],
        model_size=[model],
        answer_frame=[frame],
        prompts=["unused"],
        trainer_state=None,
    )
    return value


HILL = math.exp(-0.5)
NEAR = 1 - (0.2 / math.hypot(0.6, 0.7)) ** 2  # 20 px beside the centre


@pytest.mark.parametrize(
    ("text", "accuracy", "iou", "distance", "gaussian", "form"),
    [
        pytest.param("(40, 30)", 1, 0, 1, 1, 1, id="centre"),
        pytest.param("(20, 20)", 1, 0, None, math.exp(-1), 1, id="first corner is inside"),
        pytest.param("(60, 30)", 0, 0, NEAR, HILL, 1, id="end is outside"),
        pytest.param("(59.999, 39.999)", 1, 0, None, None, 1, id="last place inside"),
        pytest.param("[20, 20, 60, 40]", 1, 1, 1, 1, 1, id="the very box"),
        pytest.param("[40, 20, 80, 40]", 0, 1 / 3, NEAR, HILL, 1, id="half over"),
        pytest.param("[39.5, 20, 40.5, 40]", 1, 20 / 800, 1, 1, 1, id="floats"),
        pytest.param("[59.5, 20, 99.5, 40]", 0, 10 / 1590, None, None, 1, id="sub-pixel overlap"),
        pytest.param("[60, 20, 80, 40]", 0, 0, None, None, 1, id="edges touch"),
        pytest.param("[60, 40, 20, 20]", 0, 0, 0, 0, 1, id="inverted"),
        pytest.param("[40, 30, 40, 30]", 0, 0, 0, 0, 1, id="no area"),
        pytest.param("[-20, -20, 100, 80]", 1, 800 / 12000, 1, 1, 1, id="negative"),
        pytest.param("(-500, -500)", 0, 0, 0, 0, 1, id="far outside"),
        pytest.param("(1e308, -1e308)", 0, 0, 0, 0, 1, id="overflow"),
        pytest.param("nothing", 0, 0, 0, 0, 0, id="no answer"),
        pytest.param("", 0, 0, 0, 0, 0, id="empty"),
        pytest.param("(40, nan)", 0, 0, 0, 0, 0, id="not finite"),
    ],
)
def test_rewards(text, accuracy, iou, distance, gaussian, form):
    assert reward(accuracy_reward_coord, text) == accuracy
    assert reward(iou_reward, text) == pytest.approx(iou)
    if distance is not None:
        assert reward(distance_reward, text) == pytest.approx(distance)
    if gaussian is not None:
        assert reward(gaussian_reward, text) == pytest.approx(gaussian, abs=1e-12)
    assert reward(format_reward, text) == form


@pytest.mark.parametrize("truth", [[20, 20, 20, 40], [60, 40, 20, 20], [20, 20, math.nan, 40]])
def test_a_true_box_without_area_is_not_scored(truth):
    for function in (accuracy_reward_coord, iou_reward, distance_reward, gaussian_reward):
        assert reward(function, "(40, 30)", truth) is None


def test_a_true_point_is_scored_where_that_has_a_meaning():
    assert reward(accuracy_reward_coord, "(40, 30)", [40, 30]) is None
    assert reward(iou_reward, "(40, 30)", [40, 30]) is None
    assert reward(gaussian_reward, "(40, 30)", [40, 30]) is None
    assert reward(distance_reward, "(60, 30)", [40, 30]) == pytest.approx(NEAR)
    near = functools.partial(accuracy_reward_coord, point_radius=0.1)  # 14.1 px of 141.4
    assert [reward(near, text, [40, 30]) for text in ("(54, 30)", "(55, 30)", "?")] == [1, 0, 0]


@pytest.mark.parametrize("function", [accuracy_reward_coord, iou_reward, gaussian_reward])
@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("original", "[100, 50, 300, 150]"),
        ("model", "[14, 14, 42, 42]"),
        ("per_mille", "[250, 250, 750, 750]"),
    ],
)
def test_all_frames_meet_in_original(function, frame, text):
    truth, sizes = [100, 50, 300, 150], {"original": (400, 200), "model": (56, 56)}
    assert reward(function, text, truth, frame, **sizes) == pytest.approx(1)
    others = {"original", "model", "per_mille"} - {frame}
    assert all(reward(function, text, truth, other, **sizes) < 1 for other in others)


@pytest.mark.parametrize(
    "completion",
    [
        "(40, 30)",
        [{"role": "assistant", "content": "(40, 30)"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "(40, 30)"}]}],
    ],
)
def test_completions_of_text_and_of_messages(completion):
    assert accuracy_reward_coord([completion], [BOX], answer_frame="original") == [1.0]
    assert format_reward([completion, []]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({}, "answer_frame"),
        ({"answer_frame": "model"}, "scales"),
        ({"answer_frame": "per_mille"}, "scales"),
        ({"answer_frame": "model", "scales": [(9, 9)]}, "model_size"),
        ({"answer_frame": ["pixels"]}, "answer_frame"),
        ({"answer_frame": "original", "scales": [(9, 9), (9, 9)]}, "scales"),
        ({"answer_frame": "per_mille", "scales": [(0, 9)]}, "scales"),
        ({"answer_frame": "original", "solution": [[1, 2, 3]]}, "solution"),
    ],
)
def test_nothing_is_guessed(columns, field):
    with pytest.raises(ConfigError) as caught:
        iou_reward(**({"completions": ["(1, 1)"], "solution": [BOX]} | columns))
    assert caught.value.field == field


def test_original_answers_need_no_size_but_distance_does():
    assert accuracy_reward_coord(["(40, 30)"], [BOX], answer_frame="original") == [1.0]
    with pytest.raises(ConfigError, match="scales"):
        distance_reward(["(40, 30)"], [BOX], answer_frame="original")


def test_parse_failures_are_logged_by_reason_zeros_too():
    logged: dict[str, float] = {}
    texts = ["(1, 1)", "", "no", "maybe"]
    accuracy_reward_coord(texts, [BOX] * 4, answer_frame="original", log_metric=logged.__setitem__)
    assert set(logged) == {f"parse_failures/{reason}" for reason in REASONS}
    assert logged["parse_failures/empty"] == 0.25
    assert logged["parse_failures/no_numbers"] == 0.5
    assert logged["parse_failures/wrong_count"] == 0


coordinates = st.floats(-1e308, 1e308)


@given(st.lists(coordinates, min_size=4, max_size=4), st.sampled_from(["model", "per_mille"]))
def test_values_stay_in_range_for_any_answer(numbers, frame):
    for text in (str(numbers), str(numbers[:2])):
        for function in REWARDS.values():
            value = reward(function, text, frame=frame, original=(3000, 2000), model=(28, 28))
            assert 0 <= value <= 1


def test_load_reward_by_short_name_and_by_path():
    assert load_reward("iou_reward") is iou_reward
    assert load_reward("grpo_stream.grounding.rewards:format_reward") is format_reward


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("iuo_reward", "accuracy_reward_coord, iou_reward"),
        ("no_such_module_here:near", "cannot be imported"),
        (":near", "cannot be imported"),
        ("math:near", "no such function"),
        ("math:pi", "no such function"),
    ],
)
def test_load_reward_says_what_would_work(name, said):
    with pytest.raises(ConfigError, match=said):
        load_reward(name)


def fragile(completions, **columns):
    """A user's own reward."""
    columns["log_metric"]("seen", 1.0)
    return [1 / int(text) for text in completions]


def test_named_reward_names_function_and_sample():
    seen = []
    columns = {"key": ["a", "a", "b"], "log_metric": lambda *entry: seen.append(entry)}
    wrapped = named_reward(fragile)
    assert wrapped.__name__ == "fragile"
    assert wrapped(completions=["1", "2", "4"], **columns) == [1, 0.5, 0.25]
    with pytest.raises(GrpoStreamError, match=r"'fragile' failed on sample 'b': ZeroDiv") as caught:
        wrapped(completions=["1", "2", "0"], **columns)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(seen) == 2  # the search for the sample logs nothing


def test_named_reward_without_keys_and_without_a_name():
    wrapped = named_reward(functools.partial(fragile, log_metric=print))
    assert wrapped.__name__ == "fragile"
    with pytest.raises(GrpoStreamError, match="'fragile' failed: ValueError"):
        wrapped(completions=["x"])


def test_named_reward_of_a_coroutine():
    async def slow(completions, **columns):
        raise OSError("gone")

    wrapped = named_reward(slow)
    coroutine = wrapped(completions=["x", "x", "y"], key=["a", "a", "b"])
    with pytest.raises(GrpoStreamError, match="'slow' failed on sample 'a', 'b': OSError: gone"):
        coroutine.send(None)


class TestMissingColumns:
    def test_are_none_and_told_of_once(self, caplog):
        def by_shape(completions, shape, weight=1.0, **_):
            return [weight if kind == "circle" else None for kind in shape]

        reward = named_reward(by_shape)
        for _ in range(2):
            assert reward(completions=["a", "b"], solution=[[1, 2], [3, 4]]) == [None, None]
        (record,) = caplog.records
        assert "shape" in record.message
        assert "completions, solution" in record.message

    def test_present_ones_are_passed_on(self, caplog):
        reward = named_reward(lambda shape, **_: list(shape))
        assert reward(completions=["a"], shape=["circle"]) == ["circle"]
        assert not caplog.records
