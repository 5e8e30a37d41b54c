import math
from pathlib import Path

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.evaluation.answer_metrics import METRICS
from grpo_stream.grounding.evaluation.evaluation_metrics import (
    DEFAULT_FIELDS,
    compare_answers,
    default_fields,
    evaluation_figures,
    pick_fields,
)
from grpo_stream.grounding.scores import SIZES
from tests.grounding.support import answer

ROOT = Path(__file__).resolve().parents[3]

# The true box is [100, 100, 200, 200], its centre (150, 150); the image's diagonal is 500.
ANSWERS = [
    answer("(150, 150)", key="a", image="1", fields={"source": "web"}),  # in the middle
    answer("(150, 199)", key="b", image="1", fields={"source": "web"}),  # a hit, 49 away
    answer("(150, 250)", key="c", image="2", fields={"source": "web"}),  # a miss, 100 away
    answer("[100, 100, 200, 180]", key="d", image="2", fields={"source": "app"}),  # IoU 0.8
    answer("[150, 100, 250, 200]", key="e", image="3", fields={"source": "app"}),  # IoU 1/3, miss
    answer("no idea", key="f", image="3", fields={}),
    answer("[0, 0, 30, 30]", (0, 0, 20, 30), key="g", image="3", fields={}),  # IoU 2/3
    answer("(900, 150)", key="h", image="3", fields={}),  # outside, farther than the diagonal
]
DISTANCES = [0, 49, 100, 10, 50, None, 5, 500]
FIGURES = {
    "point_accuracy": 4 / 8,
    "mean_iou": (0.8 + 1 / 3 + 2 / 3) / 8,
    "acc_50": 2 / 8,
    "parse_failures": 1 / 8,
    "mean_distance": sum(d for d in DISTANCES if d is not None) / 500 / 7,
    "outside_image": 1 / 8,
    # Something is there in every sample, and of several places nobody wants all.
    **dict.fromkeys(("with_refusals", "refusal_accuracy", "false_refusals", "set_f1")),
}


def values(figures):
    return {name: figures[name] and figures[name]["value"] for name in METRICS}


def figures_of(answers, fields=None, **changes):
    options = {"asks_boxes": False, "num_resamples": 200} | changes
    return evaluation_figures(answers, fields, **options)


class TestFigures:
    def test_by_hand(self):
        found = figures_of(ANSWERS)
        whole = found["figures"]
        assert values(whole) == pytest.approx(FIGURES)
        assert (whole["num_samples"], whole["num_images"]) == (8, 3)
        assert whole["mean_distance"]["num_samples"] == 7
        assert whole["mean_iou"]["num_samples"] == 8
        assert found["failures"] == {"no_numbers": 1}
        for name in METRICS:
            if FIGURES[name] is not None:
                low, value, high = (whole[name][end] for end in ("low", "value", "high"))
                assert 0 <= low <= value <= high <= 1

    def test_slices_by_hand(self):
        slices = figures_of(ANSWERS)["slices"]
        assert list(slices) == ["size of target", "source"]
        # 600 and 10,000 of 120,000 pixels
        medium, large = slices["size of target"]
        assert (medium["name"], medium["label"]) == ("medium", "medium, below 1%")
        assert (large["name"], large["num_samples"]) == ("large", 7)
        assert medium["point_accuracy"]["value"] == 1
        assert large["point_accuracy"]["value"] == 3 / 7
        none, web, app = slices["source"]
        assert [part["name"] for part in (none, web, app)] == ["(none)", "web", "app"]
        assert [part["num_samples"] for part in (none, web, app)] == [3, 3, 2]
        assert [part["num_images"] for part in (none, web, app)] == [1, 2, 2]
        assert [part["point_accuracy"]["value"] for part in (web, app)] == [2 / 3, 1 / 2]
        assert app["mean_iou"]["value"] == pytest.approx((0.8 + 1 / 3) / 2)
        assert web["mean_iou"]["value"] == 0

    def test_fields_that_are_named_are_taken_whatever_they_hold(self):
        slices = figures_of(ANSWERS, ["nothing", "source"])["slices"]
        assert list(slices) == ["size of target", "nothing", "source"]
        assert [part["name"] for part in slices["nothing"]] == ["(none)"]

    @pytest.mark.parametrize("asks_boxes", [True, False])
    def test_overlaps_are_left_out_where_boxes_are_neither_asked_for_nor_answered(self, asks_boxes):
        found = figures_of(ANSWERS[:3], asks_boxes=asks_boxes)["figures"]
        if asks_boxes:
            assert found["mean_iou"]["value"] == found["acc_50"]["value"] == 0
        else:
            assert found["mean_iou"] is found["acc_50"] is None
            assert found["point_accuracy"]["value"] == 2 / 3

    def test_one_image_tells_nothing_of_the_spread(self):
        found = figures_of(ANSWERS[:2])["figures"]["point_accuracy"]
        assert (found["value"], found["low"], found["high"]) == (1, None, None)

    def test_where_all_succeed_the_interval_still_has_a_width(self):
        answers = [answer("(150, 150)", key=str(n), image=str(n)) for n in range(10)]
        found = figures_of(answers)["figures"]
        assert found["point_accuracy"]["low"] == pytest.approx(0.7225, abs=1e-4)  # Wilson, 10 of 10
        assert found["point_accuracy"]["high"] == 1
        assert found["mean_distance"] == {"value": 0, "low": 0, "high": 0, "num_samples": 10}

    def test_no_answer_that_gives_a_place(self):
        found = figures_of([answer("", key="a"), answer("no", key="b", image="j")])["figures"]
        assert found["mean_distance"] is None
        assert found["parse_failures"]["value"] == 1


class TestFields:
    def test_those_that_tell_samples_apart(self):
        answers = [
            answer("", key=str(n), fields={"source": "a", "role": n % 3, "platform": n})
            for n in range(50)
        ]
        assert default_fields(answers) == ["role"]  # one value, three values, fifty values

    def test_two_fields_together(self):
        fields = [{"group": g, "ui_type": t} for g in ("dev", "cad") for t in ("text", "icon")]
        fields.append({"group": "dev"})
        picked = [pick_fields(one, ["group", "ui_type", "group+ui_type"]) for one in fields]
        assert picked[0]["group+ui_type"] == "dev, text"
        assert picked[4] == {"group": "dev", "group+ui_type": "dev, (none)"}
        assert pick_fields({"a+b": 1, "a": 2}, ["a+b"]) == {"a+b": 1}
        answers = [answer("", key=str(n), fields=one) for n, one in enumerate(picked)]
        assert default_fields(answers) == ["group", "ui_type", "group+ui_type"]
        alike = [answer("", key=str(n), fields=picked[0]) for n in range(2)]
        assert default_fields(alike) == []

    def test_each_text_of_a_list_is_a_slice(self):
        kinds = [["Button", "Icon"], ["Icon"], [], ["Icon", "Icon"]]
        answers = [
            answer("(150, 150)", key=str(n), fields={"GUI_types": one})
            for n, one in enumerate(kinds)
        ]
        parts = figures_of(answers)["slices"]["GUI_types"]
        found = {part["name"]: part["num_samples"] for part in parts}
        assert found == {"Icon": 3, "(none)": 1, "Button": 1}

    def test_a_field_in_a_field(self):
        extra = {"element": {"role": "link"}, "a.b": 1, "a": {"b": 2}, "no": None, "text": "t"}
        names = ["element.role", "a.b", "no", "text.length", "gone.x", "text"]
        assert pick_fields(extra, names) == {"element.role": "link", "a.b": 1, "text": "t"}


class TestCompare:
    def test_by_hand(self):
        other = [
            answer("(150, 150)", key="a", image="1"),
            answer("(150, 250)", key="b", image="1"),
            answer("(150, 150)", key="c", image="2"),
            answer("no", key="d", image="2"),
            answer("(150, 160)", key="zzz", image="2"),  # not read by the other
        ]
        found = compare_answers(ANSWERS, other, asks_boxes=False, num_resamples=200)
        assert found["here"]["num_samples"] == found["there"]["num_samples"] == 4
        assert found["here"]["point_accuracy"]["value"] == 3 / 4
        assert found["there"]["point_accuracy"]["value"] == 2 / 4
        assert found["differences"]["point_accuracy"]["value"] == 1 / 4
        assert found["differences"]["parse_failures"]["value"] == -1 / 4
        # Over the three samples that both give a place for: 0, 49 - 100, 100 - 0 of 500.
        assert found["differences"]["mean_distance"]["value"] == pytest.approx(49 / 3 / 500)
        assert found["differences"]["mean_iou"] is None  # there, nobody speaks of boxes
        assert (found["num_gained"], found["num_lost"]) == (2, 1)

    def test_with_itself(self):
        found = compare_answers(ANSWERS, ANSWERS, asks_boxes=False, num_resamples=200)
        for name in METRICS:
            difference = found["differences"][name]
            if FIGURES[name] is None:
                assert difference is None
                continue
            assert (difference["value"], difference["low"], difference["high"]) == (0, 0, 0)
        assert found["num_gained"] == found["num_lost"] == 0

    def test_a_small_difference_that_is_everywhere_is_clear_in_pairs(self):
        texts = ["(150, 150)", "(150, 260)"]
        here = [answer(texts[n % 2], key=str(n), image=str(n)) for n in range(60)]
        there = [answer(texts[n % 2 or n < 8], key=str(n), image=str(n)) for n in range(60)]
        found = compare_answers(here, there, asks_boxes=False)
        apart = found["here"]["point_accuracy"]["low"], found["there"]["point_accuracy"]["high"]
        assert apart[0] < apart[1]  # by themselves they might be equal
        assert found["differences"]["point_accuracy"]["low"] > 0

    def test_other_samples(self):
        with pytest.raises(ConfigError, match="same samples"):
            compare_answers(ANSWERS, [answer("", key="other")], asks_boxes=False)


def test_figures_do_not_depend_on_the_names_of_images():
    renamed = [answer(a.text, a.solution, key=a.key, image=f"x{9 - int(a.image)}") for a in ANSWERS]
    plain = [answer(a.text, a.solution, key=a.key, image=a.image) for a in ANSWERS]
    assert figures_of(renamed) == figures_of(plain)
    assert not math.isnan(figures_of(plain)["figures"]["mean_iou"]["low"])


def test_the_page_of_docs_names_what_there_is():
    page = (ROOT / "docs/evaluation.md").read_text()
    for name in (*METRICS, *DEFAULT_FIELDS, *(name for name, _ in SIZES)):
        assert f"`{name}`" in page
    for name, limit in SIZES[:-1]:
        assert f"| `{name}` | below {100 * limit:g} % |" in page
