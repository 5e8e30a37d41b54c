import base64
import io

import numpy as np
import pytest
from PIL import Image

from grpo_stream.report.answer_cards import LOOK_COLOUR, answer_card, pick_answers
from grpo_stream.report.marked_image import COLOURS
from tests.report.support import UNREADABLE, row
from tests.report.test_gallery import images_of
from tests.report.test_html_page import Page


class TestCard:
    def drawn(self, **changes):
        grey = Image.new("RGB", (600, 300), (128, 128, 128))  # half of the original
        page = Page(answer_card(row(**changes), grey))
        first = page.references[0].partition(",")[2]
        with Image.open(io.BytesIO(base64.b64decode(first))) as image:
            return np.asarray(image.convert("RGB")).astype(int), page

    @pytest.mark.parametrize(("is_hit", "role"), [(True, "right"), (False, "wrong")])
    def test_truth_and_answer_are_drawn_where_they_lie(self, is_hit, role):
        pixels, page = self.drawn(is_hit=is_hit)
        assert pixels.shape == (300, 600, 3)
        assert pixels[90, 98].tolist() == pytest.approx(COLOURS["truth"], abs=40)
        assert pixels[75, 150].tolist() == pytest.approx(COLOURS[role], abs=40)
        assert f"class='verdict {role}'" in answer_card(
            row(is_hit=is_hit), Image.new("RGB", (60, 30))
        )
        assert "link" in "".join(page.words)

    def test_an_answered_box_is_drawn_with_its_centre(self):
        pixels, page = self.drawn(box=[200, 40, 400, 260], iou=0.5)
        assert pixels[75, 98].tolist() == pytest.approx(COLOURS["right"], abs=60)
        assert "0.500" in "".join(page.words)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({}, "hit, 2.2% of the diagonal from the centre"),
            ({"is_hit": False, "is_outside": True}, "miss, 2.2%"),
            ({"is_hit": False, "is_outside": True}, "outside of the image"),
            ({"is_hit": None}, "answered, 2.2%"),
            ({"solution": [], "is_refusal": True}, "says that it is not there, which is so"),
            ({"is_refusal": True, "is_hit": False}, "says that it is not there, but it is"),
            ({"solution": [], "is_hit": None}, "answered a place, and nothing is there"),
            ({"solution": [[1, 2, 9, 9], [5, 6, 90, 90]], "set_f1": 0.5}, "F1 of the set 0.50"),
            (UNREADABLE, "unreadable: no numbers"),
            (UNREADABLE, "(nothing)"),
        ],
    )
    def test_the_verdict(self, changes, words):
        assert words in answer_card(row(**changes), Image.new("RGB", (60, 30)))

    def test_a_small_target_is_shown_larger_with_the_answer_beside_it(self):
        html = answer_card(row(solution=[290, 140, 300, 160]), Image.new("RGB", (1200, 600)))
        assert len(images_of(Page(html))) == 2


def answer(image, distance, *, hit=False, iou=0.0, side=100, failure=None):
    return {
        "image": image,
        "distance": distance,
        "point": None if distance is None else [1, 1],
        "is_hit": hit,
        "iou": iou,
        "failure": failure,
        "solution": [0, 0, side, side],
        "scales": [1000, 1000],
    }


ANSWERS = [
    answer("a", 0.9),
    answer("a", 0.8),
    answer("b", 0.1, side=5),
    answer("b", 0.0, hit=True),
    answer("c", 0.01, hit=True, iou=0.9),
    answer("c", None, failure="empty", side=1),
    answer("d", 0.5, side=400),
]


@pytest.mark.parametrize(
    ("title", "places"),
    [
        ("Farthest misses", [0, 6, 2, 1]),  # one of each image before a second one
        ("Near misses", [2, 6, 1, 0]),
        ("Smallest targets", [5, 2, 0, 6]),
        ("Best answers", [4, 3]),
        ("Unreadable answers", [5]),
    ],
)
def test_each_kind_in_its_order(title, places):
    picks = {pick.title: pick.places for pick in pick_answers(ANSWERS, 4)}
    assert picks[title] == places


def test_kinds_without_answers_are_left_out():
    assert [pick.title for pick in pick_answers(ANSWERS[3:4], 2)] == [
        "Smallest targets",
        "Best answers",
    ]
    assert pick_answers(ANSWERS, 0) == []
    points = [answer("a", 0.2) | {"solution": [5, 5], "iou": None}]
    assert [pick.title for pick in pick_answers(points, 2)] == ["Farthest misses", "Near misses"]


def test_targets_of_every_kind_have_their_cards():
    grey = Image.new("RGB", (600, 300), (128, 128, 128))
    box, triangle = [200, 120, 400, 240], [600, 100, 900, 100, 600, 500]
    several = row(solution=[box, triangle], set_f1=1, is_hit=None, more_places=[[700, 200]])
    for answer in (several, row(solution=triangle), row(solution=[], is_hit=None)):
        assert len(images_of(Page(answer_card(answer, grey)))) >= 1
    assert "class='verdict right'" in answer_card(several, grey)


def test_refusals_and_sets_are_kinds_of_their_own():
    box = [200, 120, 400, 240]
    answers = [
        row(solution=[], is_hit=None, is_refusal=True, failure="refusal", point=None),
        row(solution=[], is_hit=None, distance=None),
        row(is_hit=False, is_refusal=True, failure="refusal", point=None, distance=None),
        row(solution=[box, box], is_hit=None, set_f1=0.5),
        row(solution=[box, box], is_hit=None, set_f1=0.0),
        row(solution=[box, box], is_hit=None, set_f1=1.0),
    ]
    picks = {pick.title: pick.places for pick in pick_answers(answers, 9)}
    assert picks["Missed refusals"] == [1]
    assert picks["Wrong refusals"] == [2]
    assert picks["Incomplete sets"] == [4, 3]
    assert "Unreadable answers" not in picks


def test_both_looks_and_samples_are_told():
    grey = Image.new("RGB", (1200, 600), (128, 128, 128))
    first = {
        "text": "(900, 500)",
        "point": [900, 500],
        "is_hit": False,
        "region": [600, 300, 1200, 600],
    }
    html = answer_card(row(first_look=first), grey)
    assert "(900, 500)" in html
    assert html != answer_card(row(), grey)
    picture = base64.b64decode(Page(html).references[0].partition(",")[2])
    with Image.open(io.BytesIO(picture)) as drawn:
        away = np.asarray(drawn.convert("RGB")).astype(int) - LOOK_COLOUR
    assert (np.abs(away).max(axis=2) < 40).sum() > 500  # not in the colour of what is enlarged
    sampled = [{"text": "a", "point": None, "is_right": right} for right in (True, False, None)]
    assert "1 of 3 right" in answer_card(row(sampled=sampled), grey)
