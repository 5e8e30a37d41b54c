from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grpo_stream.boxes import Point, Size
from grpo_stream.grounding.cases import Case
from grpo_stream.grounding.frames import to_original
from grpo_stream.images import DEFAULT_LIMITS, ResizeRule, decode
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.targets import read_target
from grpo_stream.train.evaluate.second_look import LEAST_SIDE, zoom_in
from tests.shards.support import image_bytes
from tests.train.support import make_mixed_sample

RULE = ResizeRule(28, 56 * 56, 224 * 224)


def stored_sample(size, original=None, image=None):
    meta = make_meta("Click", (1, 2, 8, 6), Size(*size), Size(*(original or size)), {"note": 1})
    return Sample("k", image or image_bytes(size), "png", meta)


def look(stored, point, zoom, rule: ResizeRule | None = RULE, image=0):
    sample = StreamSample.from_sample(stored, rule)
    return zoom_in(sample, stored, point, zoom, rule, DEFAULT_LIMITS, image)


@pytest.mark.parametrize(
    ("point", "region"),
    [
        ((600, 300), (400, 200, 800, 400)),
        ((0, 0), (0, 0, 400, 200)),
        ((1199, 599), (800, 400, 1200, 600)),
        ((5000, -5000), (800, 0, 1200, 200)),
        ((150, 590), (0, 400, 400, 600)),
    ],
)
def test_the_crop_is_around_the_point_and_within_the_image(point, region):
    sample, view = look(stored_sample((1200, 600)), point, 3)
    assert (view.region.x1, view.region.y1, view.region.x2, view.region.y2) == region
    assert view.size == sample.scales == (400, 200)
    assert sample.model_size == RULE.target(Size(400, 200))
    assert (sample.key, sample.prompt, sample.extra) == ("k", "Click", {"note": 1})


def test_the_crop_is_cut_from_the_stored_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    stored = stored_sample((600, 400), (1800, 1200), buffer.getvalue())
    sample, view = look(stored, (900, 600), 2, None)
    assert np.array_equal(sample.pixels, decode(stored.image)[100:300, 150:450])
    region = (view.region.x1, view.region.y1, view.region.x2, view.region.y2)
    assert region == (450, 300, 1350, 900)  # of the original, thrice as large as what is stored


def test_a_small_image_is_looked_at_whole():
    sample, view = look(stored_sample((100, 300)), (50, 150), 4)
    assert sample.scales == (100, LEAST_SIDE)
    assert (view.region.x1, view.region.x2) == (0, 100)


sides = st.integers(60, 500)


@given(sides, sides, st.floats(0.5, 4), st.floats(1.1, 6), st.floats(0, 1), st.floats(0, 1))
def test_answers_to_the_crop_are_places_in_the_original(width, height, scale, zoom, across, down):
    """From each frame of the crop, through its resize and the stored size, to the original."""
    original = Size(max(1, round(width * scale)), max(1, round(height * scale)))
    stored = stored_sample((width, height), original)
    point = (across * original.width, down * original.height)
    sample, view = look(stored, point, zoom)
    assert 0 <= view.region.x1 <= point[0] <= view.region.x2 <= original.width + 1e-6
    assert 0 <= view.region.y1 <= point[1] <= view.region.y2 <= original.height + 1e-6
    x = (point[0] - view.region.x1) / view.region.width
    y = (point[1] - view.region.y1) / view.region.height
    spans = {"original": sample.scales, "model": sample.model_size, "per_mille": Size(1000, 1000)}
    for frame, span in spans.items():
        answered = Point(x * span.width, y * span.height, frame)  # type: ignore[arg-type]
        back = to_original(
            answered, model_size=sample.model_size, original_size=original, view=view
        )
        assert (back.x, back.y) == pytest.approx(point, abs=1e-6)
        assert back.frame == "original"


several = st.lists(st.tuples(sides, sides), min_size=2, max_size=4)


@given(several, st.data(), st.floats(1.1, 6), st.floats(0, 1), st.floats(0, 1))
def test_of_several_images_one_is_cropped_and_answers_to_it_come_back(
    sizes, data, zoom, across, down
):
    """The place is in that image alone; the others are shown, and read, as before."""
    number = data.draw(st.integers(0, len(sizes) - 1))
    stored = make_mixed_sample("k", sizes)
    before = StreamSample.from_sample(stored, RULE)
    point = (across * sizes[number][0], down * sizes[number][1])
    sample, view = look(stored, point, zoom, image=number)
    assert view.image == number
    for place, size in enumerate(sizes):
        if place != number:
            assert np.array_equal(sample.images[place], before.images[place])
            assert sample.original_sizes[place] == size
    assert sample.original_sizes[number] == view.size
    assert sample.model_sizes[number] == RULE.target(view.size)
    region = view.region
    x = (point[0] - region.x1) / region.width * sample.model_sizes[number].width
    y = (point[1] - region.y1) / region.height * sample.model_sizes[number].height
    for image in range(len(sizes)):
        target = read_target([0, 0, 9, 9], None, [image], len(sizes))
        case = Case(f"({x}, {y})", target, before.original_sizes, sample.model_sizes, "model", view)
        assert case.point is not None
        if image == number:
            assert (case.point.x, case.point.y) == pytest.approx(point, abs=1e-6)
        else:
            wide, high = sizes[image][0] / sample.model_sizes[image].width, sizes[image][1]
            high /= sample.model_sizes[image].height
            assert (case.point.x, case.point.y) == pytest.approx((x * wide, y * high))
