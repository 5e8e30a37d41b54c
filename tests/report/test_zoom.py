import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.report.pictures import COLOURS, Mark
from grpo_stream.report.zoom import draw_zoom, zoom_region

SCREEN = Size(1280, 720)


@pytest.mark.parametrize(
    ("shape", "region"),
    [
        (Box(600, 300, 620, 310), Box(538, 260, 682, 350)),
        (Box(0, 0, 20, 10), Box(0, 0, 144, 90)),
        (Box(1270, 715, 1290, 730), Box(1136, 630, 1280, 720)),
        (Point(639.5, 359.5), Box(568, 315, 712, 405)),
        (Box(500, 300, 780, 328), Box(440, 189, 840, 439)),
        (Box(100, 100, 1200, 600), None),
        (Box(9, 9, 9, 20), None),
        (Box(2000, 10, 2010, 20), None),
        (Point(float("nan"), 3), None),
    ],
)
def test_the_region_is_around_the_place_and_inside(shape, region):
    assert zoom_region(shape, SCREEN) == region


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.lists(st.floats(-100, 6000, allow_nan=False), min_size=4, max_size=4),
)
def test_a_region_never_leaves_the_image(width, height, numbers):
    region = zoom_region(Box(*numbers), Size(width, height))
    if region is not None:
        assert region.is_valid
        assert region.clipped(Size(width, height)) == region
        assert all(isinstance(n, int) for n in (region.x1, region.y1, region.x2, region.y2))


def test_the_place_is_drawn_where_it_lies_in_the_enlarged_part():
    image = Image.new("RGB", SCREEN, (128, 128, 128))
    image.paste((255, 255, 0), (600, 300, 620, 310))
    region = zoom_region(Box(600, 300, 620, 310), SCREEN)
    assert region is not None
    zoom = draw_zoom(image, Box(600, 300, 620, 310), "truth", region, Size(432, 270))
    assert zoom.size == (432, 270)
    x1, y1 = round(600 - region.x1) * 3, round(300 - region.y1) * 3
    pixels = np.asarray(zoom)
    assert tuple(pixels[y1 + 15, x1 + 30]) == (255, 255, 0)
    assert tuple(pixels[y1 + 15, x1 - 2]) == COLOURS["truth"]
    assert tuple(pixels[y1 - 2, x1 + 30]) == COLOURS["truth"]
    assert tuple(pixels[2, 2]) == (128, 128, 128)


@pytest.mark.parametrize(
    ("shape", "is_drawn"),
    [
        (Point(640, 290), True),
        (Point(100, 290), False),  # else it would be drawn at the edge
        (Box(560, 280, 600, 300), True),
        (Box(100, 280, 200, 300), False),
    ],
)
def test_further_marks_are_drawn_where_they_are_in_sight(shape, is_drawn):
    image = Image.new("RGB", SCREEN, (128, 128, 128))
    region = Box(538, 260, 682, 350)
    truth = Box(600, 300, 620, 310)
    size = Size(432, 270)
    plain, marked = (
        np.asarray(draw_zoom(image, truth, "truth", region, size, more))
        for more in ((), [Mark(shape, "wrong")])
    )
    assert (plain != marked).any() == is_drawn
