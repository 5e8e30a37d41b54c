import argparse
import json

import pytest

from benchmarks.step import growth
from benchmarks.step.growth_chart import growth_chart

SMALL = (
    "--num-generations 2 3 --num-prompt-tokens 32 --num-tokens 4 --hidden-size 64 --rounds 1 --json"
)


def test_both_ways_give_the_same_log_probabilities(capsys, tmp_path):
    parser = argparse.ArgumentParser()
    growth.add_command(parser.add_subparsers())
    chart = tmp_path / "growth.svg"
    args = parser.parse_args(["growth", *SMALL.split(), "--chart", str(chart)])
    args.run(args)
    points = json.loads(capsys.readouterr().out)["points"]
    assert [(point["G"], point["P"], point["C"]) for point in points] == [(2, 32, 4), (3, 32, 4)]
    for point in points:
        assert point["error"] < 1e-5
        assert point["ratio"] > 0
        size = point["G"]
        assert point["predicted"] == pytest.approx(size * 36 / (32 + size * 4))
    assert chart.read_text().count("<circle") == 2 + 1


def test_every_point_is_drawn():
    rows = [
        {"P": length, "predicted": predicted, "ratio": predicted * share}
        for length in (256, 1024, 2700)
        for predicted in (1.5, 4.0, 9.0)
        for share in (0.6, 1.1)
    ]
    drawn = growth_chart(rows)
    assert drawn.count("<circle") == len(rows) + 3  # and the legend's
    assert "18 points, each at least 0.60" in drawn
