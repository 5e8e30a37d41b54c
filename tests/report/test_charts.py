import math
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.report.charts import PALETTE, Bar, Series, bar_chart, line_chart, ticks

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg):
    return ET.fromstring(svg)  # noqa: S314 - our own text


def texts(root):
    return ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]


def paths(root):
    """Each path's points, by colour and width of the stroke."""
    found = {}
    for node in root.iter(f"{SVG}path"):
        steps = node.get("d")[1:].split(" L")
        points = [tuple(map(float, step.split())) for step in steps]
        found[node.get("stroke"), node.get("stroke-width")] = points
    return found


def line(ys, **options):
    series = [Series("reward", range(len(ys)), ys)]
    return parsed(line_chart("Reward", series, x_label="global step", y_label="mean", **options))


def test_a_curve_rises_where_its_values_do():
    root = line([0.0, 0.5, 1.0])
    (points,) = paths(root).values()
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[0][1] > points[1][1] > points[2][1]  # y grows downwards in SVG
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.2)
    assert {"Reward", "global step", "mean", "0", "1"} <= set(texts(root))


def test_it_can_be_read_aloud():
    root = line([0.25, 0.5])
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "Reward"
    assert root.find(f"{SVG}desc").text == "mean over global step: reward from 0.25 to 0.5"


def test_smoothing_draws_pale_points_under_a_thick_mean():
    found = paths(line([0.0, 3.0, 0.0, 3.0, 0.0, 3.0], smooth=3, y_range=(0, 3)))
    assert set(found) == {(PALETTE[0], "1.2"), (PALETTE[0], "2.4")}
    raw, mean = (found[PALETTE[0], width] for width in ("1.2", "2.4"))
    low, high = raw[0][1], raw[1][1]
    heights = [(low - y) / (low - high) * 3 for _, y in mean]
    assert heights == pytest.approx([1.5, 1, 2, 1, 2, 1.5], abs=0.02)


def test_two_series_have_two_colours_and_a_legend():
    series = [Series("a & b", [0, 1], [0, 1]), Series("c", [0, 1], [1, 0])]
    root = parsed(line_chart("Two", series, x_label="x", y_label="y"))
    assert {colour for colour, _ in paths(root)} == set(PALETTE)
    assert any("a & b" in text and "c" in text for text in texts(root))


@pytest.mark.parametrize("ys", [[], [math.nan], [math.inf, math.nan]])
def test_no_data_is_said(ys):
    assert "no data" in texts(line(ys))


@pytest.mark.parametrize(
    "ys", [[0.0], [5.0], [3.0, 3.0], [-1e9, 1e9], [1e-7, 2e-7], [0.5, math.nan]]
)
def test_odd_data_stays_on_the_canvas(ys):
    root = line(ys, smooth=5)
    width, height = map(float, root.get("viewBox").split()[2:])
    for points in paths(root).values():
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    for node in root.iter(f"{SVG}line"):
        assert 0 <= float(node.get("y1")) <= height
        assert 0 <= float(node.get("x2")) <= width


def test_texts_are_escaped():
    series = [Series("<i>", [0, 1], [0, 1]), Series("&amp;", [0, 1], [0, 1])]
    root = parsed(line_chart("<b>&", series, x_label="'x'", y_label='"y"'))
    assert {"<b>&", "'x'", '"y"'} <= set(texts(root))
    assert "<i> from 0 to 1" in root.find(f"{SVG}desc").text


@pytest.mark.parametrize("count", [0, 3])
def test_one_or_two_series(count):
    with pytest.raises(ValueError, match="must be 1 or 2"):
        line_chart("x", [Series("a", [0], [0])] * count, x_label="x", y_label="y")


def test_xs_and_ys_pair_up():
    with pytest.raises(ValueError, match="shorter"):
        line_chart("x", [Series("a", [0, 1], [0])], x_label="x", y_label="y")


def test_bars_are_as_long_as_their_shares():
    bars = [Bar("before", 0.25, 0.2, 0.3), Bar("after", 0.75, 0.7, 0.8)]
    root = parsed(bar_chart("Accuracy", bars, note="95 % interval"))
    widths = [float(node.get("width")) for node in root.iter(f"{SVG}rect")]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    assert {"before", "25.0%", "after", "75.0%", "95 % interval"} <= set(texts(root))
    assert "after 75.0% (70.0% to 80.0%)" in root.find(f"{SVG}desc").text
    ends = {round(float(node.get("x1"))) for node in root.iter(f"{SVG}line")}
    left = min(float(node.get("x")) for node in root.iter(f"{SVG}rect"))
    assert {round(left + widths[0] * share / 0.25) for share in (0.2, 0.3)} <= ends


def test_bars_need_one():
    with pytest.raises(ValueError, match="at least 1"):
        bar_chart("x", [])


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 100, 6, [0, 20, 40, 60, 80, 100]),
        (-0.3, 0.3, 4, [-0.4, -0.2, 0, 0.2, 0.4]),
        (5, 5, 3, [0, 5, 10]),
        (0, 0, 3, [-0.5, 0, 0.5]),
    ],
)
def test_ticks(low, high, count, expected):
    assert ticks(low, high, count) == pytest.approx(expected)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 10))
def test_ticks_hold_the_range_and_are_few(low, span, count):
    high = low + span
    if high - low < abs(low) * 1e-9:
        return  # nearer than the labels could tell
    found = ticks(low, high, count)
    slack = (found[1] - found[0]) * 1e-6
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= count + 2
