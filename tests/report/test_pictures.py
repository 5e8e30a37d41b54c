import io

import numpy as np
import pytest
from PIL import Image

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.report.pictures import (
    COLOURS,
    MAX_SIDE_PIXELS,
    Mark,
    contact_sheet,
    draw_marks,
    encode_picture,
    picture_size,
)

GREY = (128, 128, 128)


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


def test_contact_sheet_centres_each_picture_in_its_cell():
    sheet = contact_sheet([grey(30, 20), grey(10, 40), grey(30, 40)], columns=2, gap=5)
    assert sheet.size == (5 + 2 * 35, 5 + 2 * 45)
    assert sheet.getpixel((5, 15)) == GREY
    assert sheet.getpixel((5, 14)) == (255, 255, 255)
    assert sheet.getpixel((50, 5)) == GREY
    assert sheet.getpixel((49, 5)) == (255, 255, 255)
    assert sheet.getpixel((5, 50)) == GREY
    assert contact_sheet([grey(30, 20)], columns=9).width == 12 + 42


@pytest.mark.parametrize(("count", "columns"), [(0, 2), (1, 0)])
def test_contact_sheet_needs_something_to_show(count, columns):
    with pytest.raises(ValueError, match="at least 1"):
        contact_sheet([grey(9, 9)] * count, columns)


def test_large_pictures_are_bounded():
    assert max(draw_marks(grey(4000, 300), []).size) == MAX_SIDE_PIXELS
