import numpy as np
import pytest

from grpo_stream.report.panels import SCALE, bars, heat_map, histogram, sheet
from grpo_stream.report.style import HINT, LINE, PAPER

PLOT = (2 * (14 + 18), 2 * (84 + 62))  # upper left corner of the first panel's plot
WIDTH, HEIGHT = 2 * 364, 2 * 174


def plot_of(panel):
    image = np.asarray(sheet("Title", "lead", [panel]))
    x, y = PLOT
    return image[y : y + HEIGHT, x : x + WIDTH]


def heights(pixels, num_bars, colour=LINE):
    is_bar = (pixels == colour).all(axis=2)
    columns = np.linspace(0, WIDTH, num_bars, endpoint=False) + WIDTH / num_bars / 3
    return [int(is_bar[:, int(column)].sum()) for column in columns]


def test_bars_of_a_histogram_are_as_tall_as_their_counts():
    found = heights(plot_of(histogram("t", "n", [4, 0, 2, 1], (1, 16))), 4)
    assert found[0] == HEIGHT
    assert found[1] == 0
    assert found[2:] == pytest.approx([HEIGHT / 2, HEIGHT / 4], abs=2)


def test_the_mark_stands_at_its_value_on_the_logarithmic_axis():
    pixels = plot_of(histogram("t", "n", [1, 1, 1, 1], (1, 16), mark=4))
    columns = np.flatnonzero((pixels == HINT).all(axis=2).all(axis=0))
    assert columns.size > 0
    assert abs(columns.mean() - WIDTH / 2) < 2


def test_a_heat_map_is_darkest_where_most_are():
    cells = np.zeros((2, 4), np.int64)
    cells[0, 0], cells[1, 3] = 4, 1
    pixels = plot_of(heat_map("t", "n", cells)).astype(int)
    assert tuple(pixels[10, 10]) == LINE
    assert tuple(pixels[10, WIDTH - 10]) == PAPER
    half = [round((a + b) / 2) for a, b in zip(PAPER, LINE, strict=True)]
    assert pixels[HEIGHT - 10, WIDTH - 10].tolist() == pytest.approx(half, abs=1)


def test_many_bars_are_added_up():
    rows = [(f"word {number}", 10 - number) for number in range(10)]
    shown = np.asarray(sheet("t", "l", [bars("t", "n", rows, 55)]))
    few = np.asarray(sheet("t", "l", [bars("t", "n", [*rows[:6], ("4 others", 10)], 55)]))
    assert np.array_equal(shown, few)


@pytest.mark.parametrize(
    "panel",
    [
        histogram("t", "n", [], (1, 1)),
        histogram("t", "n", [5], (2.0, 2.04), mark=2.02),
        histogram("t", "n", [1] * 48, (1e-9, 1e9)),
        bars("t", "n", [], 0),
        bars("\u65e5" * 99, "n" * 999, [("w" * 99, 0)], 0),
        heat_map("t", "n", np.zeros((3, 3), np.int64)),
    ],
)
def test_odd_panels_can_be_drawn(panel):
    one = sheet("T" * 300, "l", [panel])
    assert one.size == (SCALE * (14 + 3 * 414), SCALE * (84 + 284))
    assert one.tobytes() == sheet("T" * 300, "l", [panel]).tobytes()
