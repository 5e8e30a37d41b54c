from grpo_stream.report.evaluation_page import evaluation_page
from tests.report.support import UNREADABLE, row
from tests.report.test_html_page import NASTY, Page


def figure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "num_samples": 2}


def figures(accuracy, iou=None):
    return {
        "num_samples": 2,
        "num_images": 2,
        "point_accuracy": figure(accuracy, 0.25, 0.75),
        "mean_iou": iou,
        "acc_50": iou,
        "parse_failures": figure(0.5),
        "mean_distance": figure(0.125),
        "outside_image": figure(0.0),
    }


def results(**changes):
    found = {
        "model": "out/checkpoint-5",
        "data": {"names": ["shards/test"], "digest": "0" * 64},
        "figures": figures(0.5),
        "failures": {"no_numbers": 1},
        "slices": {"source": [{"name": "web", **figures(0.5)}]},
        "comparisons": [],
        "bad_samples": [],
        "task": {"template": "point"},
        "settings": {"batch_size": 4},
        "versions": {"torch": "2"},
        "timing": {"seconds": 1.5},
    }
    return found | changes


class TestPage:
    def test_says_everything_and_fetches_nothing(self):
        page = evaluation_page(
            results(), [row(), row(**UNREADABLE)], [("Best", "A word.", ["<b>card</b>"])]
        )
        words = " ".join(Page(page).words)
        for part in (
            "Evaluation of out/checkpoint-5",
            "2 samples on 2 images of shards/test",
            "50.0% (25.0-75.0)",
            "12.5%",
            "web",
            "no numbers",
            "Where the answers fall",
            "A word.",
            "card",
        ):
            assert part in words
        assert "mean IoU" not in words.replace("Mean IoU", "")
        assert "://" not in page.replace("http://www.w3.org/2000/svg", "")

    def test_bars_are_as_long_as_their_figures(self):
        page = evaluation_page(results(), [row()], [])
        assert page.count("<i style='width:50.00%'></i>") == 2
        assert page.count("<u style='left:25.00%;width:50.00%'></u>") == 2

    def test_overlaps_have_a_chart_where_there_are_boxes(self):
        plain, boxes = (
            evaluation_page(results(figures=figures(0.5, iou)), [row()], [])
            for iou in (None, figure(0.25))
        )
        assert "IoU of at least" not in plain
        assert "IoU of at least" in boxes
        assert "0.250" in boxes

    def test_texts_are_escaped(self):
        slices = {NASTY: [{"name": NASTY, **figures(0.5)}]}
        comparison = {
            "path": NASTY,
            "model": NASTY,
            "here": figures(0.5),
            "there": figures(0.25),
            "differences": figures(0.25),
            "num_gained": 3,
            "num_lost": 2,
        }
        page = evaluation_page(
            results(
                model=NASTY,
                slices=slices,
                bad_samples=[NASTY],
                comparisons=[comparison],
                settings={"by": [NASTY]},
            ),
            [row()],
            [(NASTY, NASTY, [])],
        )
        assert "script" not in Page(page).tags
        assert "".join(Page(page).words).count(NASTY) >= 6
        assert "3 samples are hits here and misses there, 2 the reverse" in page

    def test_a_set_of_points_or_without_any_answer_has_a_page_too(self):
        point = row(solution=[300, 180], iou=None, size="point")
        assert "<svg" in evaluation_page(results(), [point, row(**UNREADABLE)], [])
