import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from grpo_stream.boxes import Box, Point, Size, iou
from grpo_stream.polygons import Polygon, overlap_area, region_iou

TRIANGLE = Polygon(((0, 0), (8, 0), (0, 8)))
ELL = Polygon(((0, 0), (6, 0), (6, 2), (2, 2), (2, 6), (0, 6)))
BOW_TIE = Polygon(((0, 0), (4, 4), (4, 0), (0, 4)))


@pytest.mark.parametrize(
    ("polygon", "area"), [(TRIANGLE, 32), (ELL, 20), (BOW_TIE, 8), (Polygon(ELL.corners[::-1]), 20)]
)
def test_the_area_is_of_what_is_inside(polygon, area):
    assert polygon.area == pytest.approx(area)
    assert polygon.is_valid


@pytest.mark.parametrize(
    ("polygon", "box", "overlap", "share"),
    [
        (TRIANGLE, Box(0, 0, 8, 8), 32, 0.5),
        (TRIANGLE, Box(0, 0, 4, 4), 16, 0.5),
        (TRIANGLE, Box(4, 4, 8, 8), 0, 0),
        (TRIANGLE, Box(2, 2, 6, 6), 8, 8 / 40),
        (TRIANGLE, Box(-1e200, -1e200, 1e200, 1e200), 32, 0),
        (TRIANGLE, Box(3, 3, 1, 1), None, 0),
        (ELL, Box(2, 2, 6, 6), 0, 0),
        (ELL, Box(1, 1, 7, 7), 9, 9 / 47),
        (ELL, Box(0, 0, 6, 6), 20, 20 / 36),
        (BOW_TIE, Box(0, 0, 2, 4), 4, 4 / 12),
        (Polygon(((0, 0), (2, 0), (4, 0))), Box(0, 0, 4, 4), 0, 0),
    ],
)
def test_overlaps_with_a_box(polygon, box, overlap, share):
    if overlap is not None:
        assert overlap_area(polygon, box) == pytest.approx(overlap)
    assert region_iou(box, polygon) == pytest.approx(share)


def test_outlines_that_are_no_polygon_have_no_area():
    for corners in (((0, 0), (2, 2), (4, 4)), ((0, 0), (1, math.nan), (2, 0)), ((0, 0), (4, 4))):
        assert not Polygon(corners).is_valid


def test_left_and_top_belong_to_it_right_and_bottom_do_not():
    square = Polygon(((0, 0), (4, 0), (4, 4), (0, 4)))
    for x, y in ((0, 0), (0, 2), (2, 0), (3.99, 3.99)):
        assert square.contains(Point(x, y))
    for x, y in ((4, 2), (2, 4), (4, 4), (-0.01, 2)):
        assert not square.contains(Point(x, y))
    assert not ELL.contains(Point(3, 3))
    with pytest.raises(ValueError, match="frames differ"):
        ELL.contains(Point(1, 1, "model"))
    with pytest.raises(ValueError, match="frames differ"):
        region_iou(Box(1, 1, 2, 2, "model"), ELL)


places = st.integers(0, 40)
corners = st.lists(st.tuples(places, places), min_size=3, max_size=9)
boxes = st.tuples(places, places, st.integers(1, 20), st.integers(1, 20)).map(
    lambda b: Box(b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=60)
@given(corners, boxes)
def test_overlaps_are_what_counting_small_squares_gives(outline, box):
    """Against the same even-odd rule at the middles of 64 squares a unit."""
    polygon, fine = Polygon(tuple(outline)), 8
    xs = (np.arange(64 * fine) + 0.5) / fine
    is_in = np.zeros((len(xs), len(xs)), bool)
    for (x1, y1), (x2, y2) in zip(outline, outline[1:] + outline[:1], strict=True):
        if y1 == y2:
            continue
        meets = (y1 <= xs) != (y2 <= xs)
        is_in ^= meets[:, None] & (xs[None, :] >= (x1 + (xs - y1) * (x2 - x1) / (y2 - y1))[:, None])
    in_box = np.zeros_like(is_in)
    in_box[round(box.y1 * fine) : round(box.y2 * fine), round(box.x1 * fine) :] = True
    in_box[:, round(box.x2 * fine) :] = False
    counted = (is_in & in_box).sum() / fine**2
    assert overlap_area(polygon, box) == pytest.approx(counted, abs=len(outline) * 1.5 + 0.01)
    # What the raster misses at slanted edges averages out over the whole.
    assert polygon.area == pytest.approx(is_in.sum() / fine**2, abs=len(outline) * 1.5 + 0.01)
    assert 0 <= region_iou(box, polygon) <= 1 + 1e-12


@given(corners, st.integers(1, 30), st.integers(1, 30), boxes)
def test_the_part_inside_an_image_has_the_same_overlaps(outline, width, height, box):
    polygon, image = Polygon(tuple(outline)), Size(width, height)
    inside = polygon.clipped(image)
    if not inside.corners:
        assert overlap_area(polygon, Box(0, 0, width, height)) == pytest.approx(0, abs=1e-6)
        return
    bounds = inside.bounds
    assert 0 <= bounds.x1 <= bounds.x2 <= width
    assert 0 <= bounds.y1 <= bounds.y2 <= height
    common = Box(box.x1, box.y1, min(box.x2, width), min(box.y2, height))
    expected = overlap_area(polygon, common) if common.is_valid else 0
    assert overlap_area(inside, box) == pytest.approx(expected, abs=1e-6)


@given(boxes, boxes)
def test_a_polygon_of_right_angles_is_a_box(a, b):
    as_polygon = Polygon(((b.x1, b.y1), (b.x2, b.y1), (b.x2, b.y2), (b.x1, b.y2)))
    assert region_iou(a, as_polygon) == pytest.approx(iou(a, b), abs=1e-12)


def test_pillow_fills_the_same_region():
    outline = ((30, 20), (380, 60), (200, 150), (360, 290), (90, 270), (140, 160))
    image = Image.new("1", (400, 300))
    ImageDraw.Draw(image).polygon(outline, fill=1)
    filled = np.asarray(image)[40:250, 100:330].sum()
    assert overlap_area(Polygon(outline), Box(100, 40, 330, 250)) == pytest.approx(filled, rel=0.01)


def test_scaled_keeps_shares():
    scaled = ELL.scaled(Size(10, 10), Size(20, 5), "model")
    assert scaled.area == pytest.approx(ELL.area)
    assert scaled.frame == "model"
    assert scaled.bounds == Box(0, 0, 12, 3, "model")


def test_a_long_outline_takes_no_time_to_speak_of():
    ring = tuple(
        (math.cos(n / 250 * math.pi) * (9 + n % 2), math.sin(n / 250 * math.pi) * 9)
        for n in range(500)
    )
    start = time.perf_counter()
    overlap_area(Polygon(ring), Box(-5, -5, 5, 7))
    assert time.perf_counter() - start < 5
