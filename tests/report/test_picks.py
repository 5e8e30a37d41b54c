import pytest

from grpo_stream.report.picks import pick_answers


def row(image, distance, *, hit=False, iou=0.0, side=100, failure=None):
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
    row("a", 0.9),
    row("a", 0.8),
    row("b", 0.1, side=5),
    row("b", 0.0, hit=True),
    row("c", 0.01, hit=True, iou=0.9),
    row("c", None, failure="empty", side=1),
    row("d", 0.5, side=400),
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
    points = [row("a", 0.2) | {"solution": [5, 5], "iou": None}]
    assert [pick.title for pick in pick_answers(points, 2)] == ["Farthest misses", "Near misses"]
