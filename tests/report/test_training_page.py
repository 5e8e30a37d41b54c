import io
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.images import Pixels
from grpo_stream.report.html_page import render
from grpo_stream.report.marked_image import COLOURS
from grpo_stream.report.training_page import TrainingRun, training_report


@dataclass(frozen=True)
class Shown:
    key: str
    pixels: Pixels
    prompt: str
    solution: tuple[float, ...]
    scales: Size


def results(known, new):
    parts = [
        {"name": name, "point_accuracy": {"value": one, "low": one - 0.1, "high": one + 0.1}}
        for name, one in (("new", new), ("known", known))
    ]
    return {
        "figures": {"num_samples": 4},
        "failures": {"empty": 1},
        "slices": {"kind": parts},
    }


def run(point, *, is_correct):
    answer = {"key": "k", "point": point, "is_hit": is_correct, "text": "(1,2)"}
    # The image was made half as large for the model.
    sample = Shown(
        "k", np.full((150, 300, 3), 128, np.uint8), "Click", (100, 60, 200, 120), Size(600, 300)
    )
    return TrainingRun(
        title="Title",
        lead="Lead",
        evaluations={
            "before": results(0.25, 0.125),
            "control": results(0.2, 0.1),
            "after": results(0.75, 0.5),
        },
        field="kind",
        parts={"known": "Known words", "new": "New words"},
        answers=[answer],
        log_histories={
            "after": [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.4, "entropy": None}],
            "control": [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2}],
        },
        samples=[sample],
        settings={"beta": 0.0},
        versions={"trl": "1"},
        seconds={"grpo": 2.0, "eval": 1.0},
    )


@pytest.mark.parametrize(("is_correct", "role"), [(True, "right"), (False, "wrong")])
def test_places_are_drawn_where_they_lie_in_the_smaller_picture(is_correct, role):
    (card,) = training_report(run([400, 200], is_correct=is_correct)).pictures
    assert card.is_correct is is_correct
    assert card.caption == "Click \N{RIGHTWARDS ARROW} (1,2)"
    with Image.open(io.BytesIO(card.image_bytes)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (150, 300, 3)
    assert pixels[45, 48].tolist() == pytest.approx(COLOURS["truth"], abs=30)
    assert pixels[100, 200].tolist() == pytest.approx(COLOURS[role], abs=30)


def test_the_page_says_what_came_of_the_run():
    page = render(training_report(run(None, is_correct=False)))
    for words in ("25.0% \N{RIGHTWARDS ARROW} 75.0%", "+50.0%", "3 s", "mean reward", "beta"):
        assert words in page
    for words in ("Known words: accuracy", "New words: accuracy", "control from 0.15 to 0.15"):
        assert words in page
    assert "<th scope='row'>New words</th><td>12.5%</td><td>10.0%</td><td>50.0%</td>" in page
    assert "Entropy" not in page  # nothing was logged
