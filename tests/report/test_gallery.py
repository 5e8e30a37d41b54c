import base64
import io

import pytest
from PIL import Image

from grpo_stream.boxes import Box, Point
from grpo_stream.report.gallery import MAX_SIDE, GallerySample, card_html, gallery_page, marks_on
from tests.report.test_html_page import NASTY, Page


def grey(width, height):
    return Image.new("RGB", (width, height), (128, 128, 128))


def sample(**changes):
    values = {
        "title": "000001_page",
        "prompt": "Click",
        "images": [grey(1280, 720)],
        "shapes": [(0, Box(10, 10, 50, 30))],
    }
    return GallerySample(**(values | changes))


def images_of(page):
    found = []
    for reference in page.references:
        if reference.startswith("data:image"):
            data = base64.b64decode(reference.split(",", 1)[1], validate=True)
            found.append(Image.open(io.BytesIO(data)).size)
    return found


def test_a_page_says_everything_escaped_and_fetches_nothing():
    shown = sample(
        title=f"key {NASTY}",
        prompt=f"prompt {NASTY}",
        facts=[(f"label {NASTY}", f"fact {NASTY}")],
        warnings=[f"warning {NASTY}"],
        extra={"source": [NASTY, "\ud800"]},
    )
    text = gallery_page(NASTY, f"lead {NASTY}", [("tile", NASTY)], [card_html(shown)])
    page = Page(text)
    assert "script" not in page.tags
    words = "".join(page.words)
    for part in ("key", "prompt", "label", "fact", "warning", "lead"):
        assert f"{part} {NASTY}" in words
    assert all(reference.startswith("data:") for reference in page.references)
    assert "://" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("changes", "shape", "sizes"),
    [
        ({}, "wide", [(1200, 675), (416, 260)]),
        ({"images": [grey(390, 844)]}, "tall", [(390, 844), (416, 260)]),
        ({"shapes": [(0, Box(0, 0, 1280, 720))]}, "wide", [(1200, 675)]),
        (
            {"shapes": [(0, Point(5, 5)), (0, Point(9, 9))]},
            "many",
            [(1200, 675)] + 2 * [(416, 260)],
        ),
        (
            {"images": [grey(390, 844), grey(64, 64)], "shapes": [(1, Box(1, 1, 9, 9))]},
            "many",
            [(390, 844), (448, 448)],
        ),
    ],
)
def test_pictures_fit_their_card_and_small_places_are_shown_larger(changes, shape, sizes):
    html = card_html(sample(**changes))
    assert f"class='card {shape}'" in html
    assert images_of(Page(html)) == sizes
    assert max(max(size) for size in sizes) <= MAX_SIDE
    assert html.count("loading='lazy'") == len(sizes)


def test_places_are_numbered_over_all_images():
    shapes = [(0, Box(0, 0, 9, 9)), (1, Box(5, 5, 700, 500)), (0, Point(3, 4))]
    shown = sample(images=[grey(1280, 720), grey(800, 600)], shapes=shapes)
    first = [(mark.role, mark.label) for mark in marks_on(shown, 0)]
    assert first == [("zoom", ""), ("zoom", ""), ("truth", "1"), ("truth", "3")]
    assert [(mark.role, mark.label) for mark in marks_on(shown, 1)] == [("truth", "2")]
    assert [mark.label for mark in marks_on(sample(), 0)] == ["", ""]


def test_that_nothing_is_there_is_marked_on_the_first_image():
    shown = sample(images=[grey(640, 400), grey(640, 400)], shapes=[])
    assert [(mark.shape, mark.role) for mark in marks_on(shown, 0)] == [(None, "truth")]
    assert marks_on(shown, 1) == []
