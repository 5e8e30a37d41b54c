import pytest

from grpo_stream.report.evaluation_charts import MAX_DOTS, target_plot
from tests.report.test_charts import SVG, parsed, texts


def dots(root):
    return [
        (float(node.get("cx")), float(node.get("cy")), node.get("fill"), node.get("r"))
        for node in root.iter(f"{SVG}circle")
    ]


def squares(root):
    """Left, top, right and bottom of the plot and of the true box."""
    found = []
    for node in root.iter(f"{SVG}rect"):
        x, y, width, height = (float(node.get(name)) for name in ("x", "y", "width", "height"))
        found.append((x, y, x + width, y + height))
    return found


def test_dots_lie_where_the_answers_do():
    root = parsed(
        target_plot("Title", [(0, 0, True), (1, -1, True), (-3, 0, False), (90, 2, False)])
    )
    plot, box = squares(root)
    centre, corner, left, beyond = dots(root)
    assert centre[:2] == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), abs=0.2)
    assert corner[:2] == pytest.approx((box[2], box[1]), abs=0.2)  # y grows downwards
    assert plot[0] < left[0] < box[0]
    assert beyond[0] == pytest.approx(plot[2], abs=0.2)
    assert "right" in centre[2]
    assert "wrong" in left[2]
    assert (left[3], beyond[3]) == ("3", "2")


def test_the_numbers_are_said():
    offsets = [(0, 0, True), (1, -1, True), (-3, 0, False), (90, 2, False)]
    said = texts(parsed(target_plot("Title", offsets)))
    assert said[0] == "Title"
    assert {"2", "25%", "+0.25, +0.00"} <= set(said)


def test_many_answers_are_thinned_out_but_all_are_counted():
    offsets = [(0.0, 0.0, True)] * (3 * MAX_DOTS + 1)
    root = parsed(target_plot("Title", offsets))
    assert MAX_DOTS / 2 < len(dots(root)) <= MAX_DOTS
    assert "6,001" in texts(root)


def test_no_answers():
    with pytest.raises(ValueError, match="at least 1"):
        target_plot("Title", [])
