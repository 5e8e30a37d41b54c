import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.polygons import Polygon
from grpo_stream.report.marked_image import (
    COLOURS,
    MAX_SIDE_PIXELS,
    Mark,
    draw_marks,
    draw_zoom,
    encode_picture,
    picture_size,
    zoom_region,
)

GREY = (128, 128, 128)
SCREEN = Size(1280, 720)


def grey(width, height):
    return Image.new("RGB", (width, height), GREY)


def has(image, colour, region=None):
    pixels = np.asarray(image.crop(region) if region else image)
    return bool((pixels == colour).all(axis=2).any())


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (Size(112, 112), Size(448, 448)),
        (Size(10, 5), Size(440, 220)),
        (Size(300, 200), Size(300, 200)),
        (Size(640, 480), Size(640, 480)),
        (Size(1920, 1080), Size(640, 360)),
        (Size(9000, 2), Size(640, 1)),
    ],
)
def test_picture_size(size, shown):
    assert picture_size(size) == shown
    assert draw_marks(grey(*size), []).size == shown


def test_an_image_without_marks_keeps_its_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(draw_marks(noise, [])), noise)
    small = noise[:100, :100]
    assert np.array_equal(np.asarray(draw_marks(small, [])), small.repeat(4, 0).repeat(4, 1))


def test_the_outline_lies_around_the_box_and_leaves_its_pixels():
    picture = draw_marks(grey(112, 112), [Mark(Box(40, 40, 72, 72), "truth")])
    left, top, right, bottom = 40 * 4, 40 * 4, 72 * 4, 72 * 4
    truth = COLOURS["truth"]
    assert picture.getpixel((left - 1, 224)) == truth
    assert picture.getpixel((right, 224)) == truth
    assert picture.getpixel((224, top - 1)) == truth
    assert picture.getpixel((224, bottom)) == truth
    inside = np.asarray(picture.crop((left + 3, top + 3, right - 3, bottom - 3)))
    assert (inside == GREY).all()
    assert has(picture, (255, 255, 255))  # the halo
    assert (np.asarray(picture.crop((0, 0, left - 9, 448))) == GREY).all()


def test_a_box_at_the_edges_is_still_seen_on_all_sides():
    picture = draw_marks(grey(300, 200), [Mark(Box(0, 0, 300, 200), "right")])
    for region in ((0, 50, 12, 150), (288, 50, 300, 150), (50, 0, 250, 12), (50, 188, 250, 200)):
        assert has(picture, COLOURS["right"], region)


@pytest.mark.parametrize("size", [(112, 112), (600, 400), (3000, 2000)])
@pytest.mark.parametrize("role", ["right", "wrong"])
def test_the_cross_hair_is_in_its_colour_at_its_place(size, role):
    width, height = size
    picture = draw_marks(grey(*size), [Mark(Point(width * 0.25, height * 0.75), role)])
    x, y = picture.width // 4, picture.height * 3 // 4
    assert picture.getpixel((x, y)) == COLOURS[role]
    assert has(picture, (255, 255, 255), (x - 40, y - 40, x + 40, y + 40))
    others = set(COLOURS) - {role}
    assert not any(has(picture, COLOURS[other]) for other in others)


def test_a_point_outside_is_drawn_at_the_edge():
    picture = draw_marks(grey(300, 200), [Mark(Point(5000, -80), "wrong")])
    assert has(picture, COLOURS["wrong"], (280, 0, 300, 20))


def test_what_is_no_box_is_left_out():
    marks = [
        Mark(Box(9, 9, 3, 3), "wrong"),
        Mark(Box(3, 3, 3, 9), "wrong"),
        Mark(Box(0, 0, float("inf"), 9), "wrong"),
        Mark(Box(900, 900, 950, 950), "wrong"),
    ]
    assert (np.asarray(draw_marks(grey(300, 200), marks)) == GREY).all()


def test_a_point_that_is_not_finite_is_left_out():
    mark = Mark(Point(float("nan"), 5), "wrong")
    assert (np.asarray(draw_marks(grey(300, 200), [mark])) == GREY).all()


def test_later_marks_lie_on_top():
    point = Point(150, 100)
    picture = draw_marks(grey(300, 200), [Mark(point, "right"), Mark(point, "wrong")])
    assert picture.getpixel((150, 100)) == COLOURS["wrong"]


@pytest.mark.parametrize("kind", ["drawing", "photograph"])
def test_encode_picture_takes_the_smaller_form(kind):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    image = grey(300, 200) if kind == "drawing" else Image.fromarray(noise)
    with Image.open(io.BytesIO(encode_picture(image))) as back:
        assert back.format == ("PNG" if kind == "drawing" else "JPEG")
        assert back.size == (300, 200)


def test_large_pictures_are_bounded():
    assert max(draw_marks(grey(4000, 300), []).size) == MAX_SIDE_PIXELS


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


def test_a_polygon_is_its_outline():
    corners = ((100, 100), (500, 100), (500, 300), (300, 200))
    picture = draw_marks(grey(640, 400), [Mark(Polygon(corners), "truth", "7")])
    for x, y in ((300, 100), (500, 200), (400, 250), (200, 150)):
        assert picture.getpixel((x, y)) == COLOURS["truth"]
    assert picture.getpixel((400, 150)) == GREY
    assert picture.getpixel((150, 250)) == GREY
    flat = Polygon(((100, 100), (300, 300), (500, 500)))
    assert not has(draw_marks(grey(640, 400), [Mark(flat, "truth")]), COLOURS["truth"])


def test_a_polygon_is_shown_larger_by_its_bounds():
    small = Polygon(((600, 300), (620, 300), (610, 310)))
    region = zoom_region(small, SCREEN)
    assert region == zoom_region(Box(600, 300, 620, 310), SCREEN)
    assert region is not None
    zoom = draw_zoom(grey(*SCREEN), small, "truth", region, Size(432, 270), [Mark(None, "wrong")])
    assert has(zoom, COLOURS["truth"])
    assert not has(zoom, COLOURS["wrong"])


@pytest.mark.parametrize("size", [(112, 112), (640, 400), (1920, 1080)])
def test_that_nothing_is_there_is_said_in_the_corner(size):
    picture = draw_marks(grey(*size), [Mark(None, "truth"), Mark(None, "wrong", "answer")])
    width, height = picture.size
    corner = (0, 0, width // 2, height // 3)
    assert has(picture, COLOURS["truth"], corner)
    assert has(picture, COLOURS["wrong"], corner)
    assert not has(picture, COLOURS["truth"], (0, height // 2, width, height))
