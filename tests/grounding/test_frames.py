import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.boxes import FRAMES, Box, Point, Size
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.frames import answer_frame_for, frame_size, from_original, to_original

sides = st.integers(1, 8192)
sizes = st.builds(Size, sides, sides)
numbers = st.floats(-1e4, 1e4)
shapes = st.one_of(st.builds(Point, numbers, numbers), st.builds(Box, *[numbers] * 4))


@pytest.mark.parametrize(
    ("model_type", "frame"),
    [("qwen2_5_vl", "model"), ("qwen2_vl", "per_mille"), ("qwen3_vl", "per_mille")],
)
def test_each_family_has_its_frame(model_type, frame):
    assert answer_frame_for(model_type) == frame


def test_an_override_wins_and_must_be_a_frame():
    assert answer_frame_for("qwen2_vl", "model") == "model"
    assert answer_frame_for("unheard_of", "original") == "original"
    with pytest.raises(ConfigError, match="answer_frame='pixels': must be one of original"):
        answer_frame_for("qwen2_vl", "pixels")


def test_an_unknown_family_is_told_what_to_set():
    with pytest.raises(ConfigError, match="llava") as caught:
        answer_frame_for("llava")
    assert caught.value.field == "answer_frame"
    assert 'answer_frame="model"' in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Point(14, 28, "model"), Point(100, 100)),
        (Point(500, 250, "per_mille"), Point(100, 100)),
        (Point(3, 4), Point(3, 4)),
        (Box(0, 0, 28, 112, "model"), Box(0, 0, 200, 400)),
        (Box(0, 0, 1000, 1000, "per_mille"), Box(0, 0, 200, 400)),
    ],
)
def test_to_original(shape, expected):
    model, original = Size(28, 112), Size(200, 400)
    assert to_original(shape, model_size=model, original_size=original) == expected


@given(shape=shapes, frame=st.sampled_from(FRAMES), model=sizes, original=sizes)
def test_there_and_back_is_the_same_place(shape, frame, model, original):
    there = from_original(shape, frame, model_size=model, original_size=original)
    back = to_original(there, model_size=model, original_size=original)
    assert there.frame == frame
    assert back.frame == "original"
    for name in type(shape).__slots__[:-1]:
        assert getattr(back, name) == pytest.approx(getattr(shape, name), rel=1e-9, abs=1e-9)


@given(frame=st.sampled_from(FRAMES), model=sizes, original=sizes)
def test_the_whole_image_spans_the_frame(frame, model, original):
    image = Box(0, 0, original.width, original.height)
    there = from_original(image, frame, model_size=model, original_size=original)
    size = frame_size(frame, model_size=model, original_size=original)
    assert (there.x2, there.y2) == pytest.approx(size)


def test_from_original_refuses_another_frame():
    with pytest.raises(ValueError, match="per_mille"):
        from_original(
            Point(1, 1, "per_mille"), "model", model_size=Size(1, 1), original_size=Size(1, 1)
        )
