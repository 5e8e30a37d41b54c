from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grpo_stream.boxes import Point, Size
from grpo_stream.grounding.frames import to_original
from grpo_stream.images import DEFAULT_LIMITS, ResizeRule, decode
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.train.evaluate.second_look import LEAST_SIDE, zoom_in
from tests.shards.support import image_bytes

RULE = ResizeRule(28, 56 * 56, 224 * 224)


def stored_sample(size, original=None, image=None):
    meta = make_meta("Click", (1, 2, 8, 6), Size(*size), Size(*(original or size)), {"note": 1})
    return Sample("k", image or image_bytes(size), "png", meta)


def look(sample, point, zoom, rule: ResizeRule | None = RULE):
    return zoom_in(sample, point, zoom, rule, DEFAULT_LIMITS)


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
