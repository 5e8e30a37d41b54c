import pytest

from grpo_stream.report.evaluation_tables import (
    comparison_table,
    difference_text,
    figure_table,
    figure_text,
)


def figure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "num_samples": 4}


def figures(accuracy, unreadable, iou=None):
    return {
        "num_samples": 1200,
        "num_images": 15,
        "point_accuracy": figure(accuracy, accuracy - 0.1, accuracy + 0.1),
        "mean_iou": iou,
        "acc_50": iou,
        "parse_failures": figure(unreadable),
        "mean_distance": None,
        "outside_image": figure(0.0),
    }


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("point_accuracy", figure(0.4259, 0.33, 0.5204), "42.6% (33.0-52.0)"),
        ("mean_iou", figure(0.4259, 0.33, 0.5204), "0.426 (0.330-0.520)"),
        ("acc_50", figure(1.0), "100.0%"),
        ("acc_50", None, "-"),
    ],
)
def test_a_figure(name, value, text):
    assert figure_text(name, value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("point_accuracy", figure(0.042, 0.01, 0.0751), "+4.2 (+1.0 to +7.5)"),
        ("mean_iou", figure(-0.042, -0.1, 0.0), "-0.042 (-0.100 to +0.000)"),
        ("parse_failures", figure(0.0), "+0.0"),
    ],
)
def test_a_difference(name, value, text):
    assert difference_text(name, value) == text


def test_a_table_by_hand():
    slices = {
        "source": [{"name": "web", **figures(0.5, 0.25)}, {"name": "app", **figures(0.2, 0.0)}],
        "size of target": [{"name": "tiny", "label": "tiny, below 0.01%", **figures(0.5, 0.25)}],
    }
    assert figure_table({"figures": figures(0.4, 0.125), "slices": slices}).splitlines() == [
        "                     samples  images     point accuracy  unreadable",
        "all                    1,200      15  40.0% (30.0-50.0)       12.5%",
        "source",
        "  web                  1,200      15  50.0% (40.0-60.0)       25.0%",
        "  app                  1,200      15  20.0% (10.0-30.0)        0.0%",
        "size of target",
        "  tiny, below 0.01%    1,200      15  50.0% (40.0-60.0)       25.0%",
    ]


def test_a_comparison_by_hand():
    comparison = {
        "here": figures(0.5, 0.25, figure(0.5)),
        "there": figures(0.4, 0.25),
        "differences": figures(0.1, 0.0),
    }
    assert comparison_table(comparison).splitlines() == [
        "                 here  there             difference",
        "point accuracy  50.0%  40.0%  +10.0 (+0.0 to +20.0)",
        "unreadable      25.0%  25.0%                   +0.0",
        "outside image    0.0%   0.0%                   +0.0",
    ]
