import functools
import inspect
import math
import pickle
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.grounding.answers import REASONS
from grpo_stream.grounding.prompts import TEMPLATES
from grpo_stream.grounding.rewards import (
    REWARDS,
    accuracy_reward_coord,
    distance_reward,
    format_reward,
    gaussian_reward,
    giou_reward,
    iou_reward,
    length_penalty,
    load_reward,
    named_reward,
    with_template,
)

CALL = '{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [10, 20]}}'
BOX = [20, 20, 60, 40]  # centre (40, 30), in an image of 100 x 100 unless told


def reward(function, text, truth=BOX, frame="original", original=(100, 100), model=(100, 100)):
    (value,) = function(
        completions=[text],
        solution=[truth],
        scales=[original],
        model_size=[model],
        answer_frame=[frame],
        completion_ids=[[1, 2]],
        prompts=["unused"],
        trainer_state=None,
    )
    return value


HILL = math.exp(-0.5)
NEAR = 1 - (0.2 / math.hypot(0.6, 0.7)) ** 2  # 20 px beside the centre


@pytest.mark.parametrize(
    ("text", "accuracy", "iou", "giou", "distance", "gaussian", "form"),
    [
        pytest.param("(40, 30)", 1, 0, -1, 1, 1, 1, id="centre"),
        pytest.param("(20, 20)", 1, 0, -1, None, math.exp(-1), 1, id="first corner is inside"),
        pytest.param("(60, 30)", 0, 0, -1, NEAR, HILL, 1, id="end is outside"),
        pytest.param("(40, 40)", 0, 0, -1, None, HILL, 1, id="lower end is outside"),
        pytest.param("(59.999, 39.999)", 1, 0, -1, None, None, 1, id="last place inside"),
        pytest.param("[20, 20, 60, 40]", 1, 1, 1, 1, 1, 1, id="the very box"),
        pytest.param("[40, 20, 80, 40]", 0, 1 / 3, 1 / 3, NEAR, HILL, 1, id="half over"),
        pytest.param("[39.5, 20, 40.5, 40]", 1, 1 / 40, 1 / 40, 1, 1, 1, id="floats"),
        pytest.param(
            "[59.5, 20, 99.5, 40]", 0, 10 / 1590, 10 / 1590, None, None, 1, id="sub-pixel overlap"
        ),
        pytest.param("[60, 20, 80, 40]", 0, 0, 0, None, None, 1, id="edges touch"),
        pytest.param("[80, 20, 100, 40]", 0, 0, -0.25, None, None, 1, id="apart"),
        pytest.param("[60, 40, 100, 60]", 0, 0, -0.5, None, None, 1, id="corners touch"),
        pytest.param("[60, 40, 20, 20]", 0, 0, -1, 0, 0, 1, id="inverted"),
        pytest.param("[60, 20, 20, 40]", 0, 0, -1, 0, 0, 1, id="inverted in x alone"),
        pytest.param("[40, 30, 40, 30]", 0, 0, -1, 0, 0, 1, id="no area"),
        pytest.param("[20, 30, 60, 30]", 0, 0, -1, 0, 0, 1, id="no height"),
        pytest.param("[-20, -20, 100, 80]", 1, 1 / 15, 1 / 15, 1, 1, 1, id="negative"),
        pytest.param("[-1e300, -1e300, 1e300, 1e300]", 0, 0, 0, None, None, 1, id="immense"),
        pytest.param("[20, 20, 1e-320, 1e-320]", 0, 0, -1, 0, 0, 1, id="denormal"),
        pytest.param("(-500, -500)", 0, 0, -1, 0, 0, 1, id="far outside"),
        pytest.param("(1e308, -1e308)", 0, 0, -1, 0, 0, 1, id="overflow"),
        pytest.param("nothing", 0, 0, -1, 0, 0, 0, id="no answer"),
        pytest.param("", 0, 0, -1, 0, 0, 0, id="empty"),
        pytest.param("(40, nan)", 0, 0, -1, 0, 0, 0, id="not finite"),
    ],
)
def test_rewards(text, accuracy, iou, giou, distance, gaussian, form):
    assert reward(accuracy_reward_coord, text) == accuracy
    assert reward(iou_reward, text) == pytest.approx(iou)
    assert reward(giou_reward, text) == pytest.approx(giou)
    if distance is not None:
        assert reward(distance_reward, text) == pytest.approx(distance)
    if gaussian is not None:
        assert reward(gaussian_reward, text) == pytest.approx(gaussian, abs=1e-12)
    assert reward(format_reward, text) == form


@pytest.mark.parametrize(
    "truth",
    [[20, 20, 20, 40], [60, 40, 20, 20], [20, 20, math.nan, 40], [0, 0, 1e-200, 1e-200]],
)
def test_a_true_box_without_area_is_not_scored(truth):
    for function in (
        accuracy_reward_coord,
        iou_reward,
        giou_reward,
        distance_reward,
        gaussian_reward,
    ):
        assert reward(function, "[1, 1, 2, 2]", truth) is None
        assert reward(function, "(40, 30)", truth) is None


def test_a_true_point_is_scored_where_that_has_a_meaning():
    assert reward(accuracy_reward_coord, "(40, 30)", [40, 30]) is None
    assert reward(iou_reward, "(40, 30)", [40, 30]) is None
    assert reward(giou_reward, "[1, 1, 2, 2]", [40, 30]) is None
    assert reward(gaussian_reward, "(40, 30)", [40, 30]) is None
    assert reward(distance_reward, "(60, 30)", [40, 30]) == pytest.approx(NEAR)
    near = functools.partial(accuracy_reward_coord, point_radius=0.1)  # 14.1 px of 141.4
    assert [reward(near, text, [40, 30]) for text in ("(54, 30)", "(55, 30)", "?")] == [1, 0, 0]


@pytest.mark.parametrize("function", [accuracy_reward_coord, giou_reward, gaussian_reward])
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


@pytest.mark.parametrize("name", ["accuracy_reward_coord", "iou_reward", "gaussian_reward"])
def test_the_error_shows_the_lines_that_work_with_plain_trl(name):
    columns = {"prompts": ["Click"], "completions": ["(40, 30)"], "solution": [BOX]}
    with pytest.raises(ConfigError, match="PersonalizedGRPOTrainer passes the column") as caught:
        REWARDS[name](**columns)
    lines = [line[4:] for line in str(caught.value).splitlines() if line.startswith("    ")]
    assert len(lines) == 2
    scope: dict[str, Any] = {name: REWARDS[name]}
    exec("\n".join(lines), scope)  # noqa: S102 - what a user would do with them
    (reward,) = scope["reward_funcs"]
    assert reward(**columns) == REWARDS[name](**columns, answer_frame="original")


def test_original_answers_need_no_size_but_distance_does():
    assert accuracy_reward_coord(["(40, 30)"], [BOX], answer_frame="original") == [1.0]
    with pytest.raises(ConfigError, match="scales"):
        distance_reward(["(40, 30)"], [BOX], answer_frame="original")


@pytest.mark.parametrize("function", [*REWARDS.values()], ids=[*REWARDS])
def test_parse_failures_are_logged_by_reason_zeros_too(function):
    logged: dict[str, float] = {}
    texts = ["(1, 1)", "", "no", "maybe", "(700, 1)"]
    columns = {"scales": [(100, 100)] * 5, "answer_frame": "original", "completion_ids": [[]] * 5}
    function(completions=texts, solution=[BOX] * 5, log_metric=logged.__setitem__, **columns)
    if function is length_penalty:
        assert logged == {}
        return
    outside = {"answers_outside_image"} - ({*logged} if function is format_reward else set())
    names = {f"parse_failures/{reason}" for reason in REASONS} | {"refusals"}
    assert {*logged} - outside == names
    assert logged["refusals"] == 0
    assert logged["parse_failures/empty"] == 0.2
    assert logged["parse_failures/no_numbers"] == 0.4
    assert logged["parse_failures/wrong_count"] == 0
    assert logged.get("answers_outside_image", 0.2) == 0.2


coordinates = st.floats(-1e308, 1e308)
RANGES = {"giou_reward": (-1, 1), "length_penalty": (-1, 0), "answer_count_reward": (-1, 1)}


@given(st.lists(coordinates, min_size=4, max_size=4), st.sampled_from(["model", "per_mille"]))
def test_values_stay_in_range_for_any_answer(numbers, frame):
    for text in (str(numbers), str(numbers[:2]), str(sorted(numbers))):
        for name, function in REWARDS.items():
            value = reward(function, text, frame=frame, original=(3000, 2000), model=(28, 28))
            if name == "refusal_reward":
                assert value is None
                continue
            least, most = RANGES.get(name, (0, 1))
            assert least <= value <= most + 1e-12


corners = st.integers(-50, 150)
boxes = st.tuples(corners, corners, st.integers(1, 90), st.integers(1, 90)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@given(boxes, boxes)
def test_overlap_is_what_counting_pixels_gives(a, b):
    def pixels(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    union, overlap = pixels(a) | pixels(b), pixels(a) & pixels(b)
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = len(overlap) / len(union)
    assert reward(iou_reward, str(a), b) == pytest.approx(iou)
    assert reward(giou_reward, str(a), b) == pytest.approx(iou - (hull - len(union)) / hull)
    assert reward(giou_reward, str(a), b) == pytest.approx(reward(giou_reward, str(b), a))


class TestFormat:
    @pytest.mark.parametrize(
        ("template", "text", "value"),
        [
            ("point", "(1, 2)", 1),
            ("point", " (1.5,-2)\n", 1),
            ("point", "Here: (1, 2)", 0),
            ("point", "[1, 2]", 0),
            ("point", "(1, 2), (3, 4)", 0),
            ("box", '{"bbox_2d": [1, 2, 3, 4]}', 1),
            ("box", '```json\n{"bbox_2d": [1, 2, 3, 4]}\n```', 1),
            ("box", '{"bbox_2d": [1, 2, 3]}', 0),
            ("box", "(1, 2)", 0),
            ("click", f"<tool_call>\n{CALL}\n</tool_call>", 1),
            ("click", CALL, 1),
            ("click", CALL.replace("left_click", "scroll"), 0),
            ("box_pairs", "(1,2),(3,4)", 1),
            ("point_thinking", "<think>left</think><answer>(1, 2)</answer>", 1),
            ("point_thinking", "left</think>\n<answer>\n(1, 2)\n</answer>", 1),
            ("point_thinking", "<think>left</think>(1, 2)", 0),
            ("point_thinking", "<think></think><answer>(1, 2)</answer>", 0),
            ("point_thinking", "<answer>(1, 2)</answer>", 0),
            ("point_thinking", "<think>left</think>so <answer>(1, 2)</answer>", 0),
            ("point_thinking", "<think>a<think>b</think><answer>(1, 2)</answer>", 0),
            ("point_thinking", "<think>left</think><answer>left</answer>", 0),
            ("point", "(" + " " * 70_000 + "1, 2)", 0),
        ],
    )
    def test_of_a_template(self, template, text, value):
        assert format_reward([text], template=template) == [value]
        assert format_reward([text], template=TEMPLATES[template]) == [value]

    @pytest.mark.parametrize(
        ("name", "asks"),
        [
            ("format_reward", True),
            ("format_reward(template='box')", False),
            ("format_reward(template='any')", False),
            ("accuracy_reward_coord(point_radius=0.05)", False),
        ],
    )
    def test_of_the_runs_template_where_none_is_set(self, name, asks):
        reward = load_reward(name)
        assert (with_template(reward, TEMPLATES["point_thinking"]) is not reward) is asks

    def test_of_the_runs_template(self):
        texts = ["(1, 2)", "<think>left</think><answer>(1, 2)</answer>", "?"]
        own = named_reward(with_template(load_reward("format_reward"), TEMPLATES["point_thinking"]))
        assert own.__name__ == "format_reward"
        assert own(completions=texts, key=["a", "b", "c"]) == [0, 1, 0]
        assert load_reward("format_reward(template='any')")(texts) == [1, 1, 0]

    def test_of_no_such_template(self):
        with pytest.raises(ConfigError, match="pointy"):
            format_reward(["(1, 2)"], template="pointy")

    @pytest.mark.parametrize("unit", ["(1", " ", "(1,", "1", '{"bbox_2d":[', "```\n", "<think>"])
    def test_takes_no_time_to_speak_of(self, unit):
        start = time.perf_counter()
        for template in TEMPLATES.values():
            template.is_followed_by((unit * 60_000)[:60_000])
        assert time.perf_counter() - start < 5


class TestLengthPenalty:
    @pytest.mark.parametrize(
        ("num_tokens", "value"),
        [(0, 0), (64, 0), (65, -1 / 192), (160, -0.5), (256, -1), (9_999, -1)],
    )
    def test_falls_in_a_straight_line(self, num_tokens, value):
        assert length_penalty(["?"], [[7] * num_tokens]) == [pytest.approx(value)]

    @pytest.mark.parametrize(
        ("columns", "field"),
        [
            ({}, "completion_ids"),
            ({"completion_ids": [[1], [2]]}, "completion_ids"),
            ({"completion_ids": [[1]], "num_max_tokens": 64}, "num_max_tokens"),
            ({"completion_ids": [[1]], "num_free_tokens": -1}, "num_free_tokens"),
        ],
    )
    def test_says_what_it_needs(self, columns, field):
        with pytest.raises(ConfigError) as caught:
            length_penalty(["?"], **columns)
        assert caught.value.field == field


def test_ten_thousand_completions_take_less_than_a_step():
    count = 10_000
    texts = [f"<think>there</think><answer>({i}, {i % 7})</answer>" for i in range(count)]
    columns = {
        "solution": [BOX] * count,
        "scales": [(1280, 720)] * count,
        "model_size": [(1288, 728)] * count,
        "answer_frame": ["model"] * count,
        "completion_ids": [[1]] * count,
    }
    start = time.process_time()
    for function in REWARDS.values():
        assert len(function(completions=texts, **columns)) == count
    assert time.process_time() - start < 10  # all ten; about 1.5 seconds on a slow core


def test_load_reward_by_short_name_and_by_path():
    assert load_reward("iou_reward") is iou_reward
    assert load_reward("grpo_stream.grounding.rewards:format_reward") is format_reward


def test_load_reward_with_parameters():
    near = load_reward("accuracy_reward_coord(point_radius=0.1)")
    assert reward(near, "(54, 30)", [40, 30]) == 1
    assert named_reward(near).__name__ == "accuracy_reward_coord"
    assert load_reward("length_penalty(num_free_tokens=0, num_max_tokens=2)")(["?"], [[1]]) == [
        -0.5
    ]
    assert load_reward(f"{__name__}:weighed(weight=3)")(["?"]) == [3]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("accuracy_reward_coord(point_radious=0.1)", "it has: point_radius"),
        ("accuracy_reward_coord(point_radius=-1)", "must be above 0"),
        ("accuracy_reward_coord(0.1)", "must be plain"),
        ("accuracy_reward_coord(point_radius=", "must be plain"),
        ("accuracy_reward_coord(point_radius=open('x'))", "must be plain"),
        ("accuracy_reward_coord(**{'a': 1})", "must be plain"),
        ("iou_reward(a=1)", "it has: none"),
        ("length_penalty(num_max_tokens=3)", "num_max_tokens=3: must be above"),
        ("format_reward(template='pointy')", "prompt_template='pointy'"),
        (f"{__name__}:weighed(wait=3)", "it has: weight"),
        ("iou_reward()x", "must be plain"),
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


def weighed(completions, weight=1.0, **_):
    return [weight] * len(completions)


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


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "on sample 'a', 'b': TypeError: it returned 1 for 2 completions"),
        (1.0, "it returned float for 2 completions"),
        (None, "it returned NoneType for 2 completions"),
        ([1.0, "high"], "it returned 'high', which is neither a number nor None"),
    ],
)
def test_named_reward_returns_a_value_each(returned, said):
    def mine(completions, **_):
        return returned

    with pytest.raises(GrpoStreamError, match=said) as caught:
        named_reward(mine)(completions=["x", "y"], key=["a", "b"])
    assert "'mine'" in str(caught.value)


def test_named_reward_passes_numbers_of_any_kind():
    wrapped = named_reward(lambda **_: np.array([1, 2], dtype=np.float32))
    assert wrapped(completions=["x", "y"]).tolist() == [1, 2]
    mixed = named_reward(lambda **_: [None, True])
    assert mixed(completions=["x", "y"]) == [None, True]


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
        reward = named_reward(lambda shape, **_: [len(name) for name in shape])
        assert reward(completions=["a"], shape=["circle"]) == [6]
        assert not caplog.records


@pytest.mark.parametrize(
    ("function", "own"),
    [(accuracy_reward_coord, ["point_radius"]), (iou_reward, []), (gaussian_reward, [])],
)
def test_a_reward_has_the_signature_that_trl_calls(function, own):
    signature = inspect.signature(function)
    names = ["completions", "solution", "scales", "model_size", "answer_frame"]
    assert list(signature.parameters) == [*names, "log_metric", *own, "_"]
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    assert required == ["completions", "solution", "_"]
    assert signature.return_annotation == list[float | None]
    assert function.__doc__.count("Formula: ") == 1
    assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301
    columns = (["(40, 30)"], [BOX], [(100, 100)], None, "original")
    assert function(*columns) == function(**dict(zip(signature.parameters, columns, strict=False)))
