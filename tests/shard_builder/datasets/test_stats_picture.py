import sys

import numpy as np
import pytest
from PIL import Image

from grpo_stream.images import ResizeRule
from shard_builder.cli import main
from shard_builder.datasets.measure import HEAT_CELLS, Measures
from tests.shards.support import make_sample, write_set

pytest.importorskip("matplotlib")

from shard_builder.datasets.stats_picture import draw_stats, save_stats

SIZES, SHAPES, PLACES = 0, 1, 3


@pytest.fixture
def found():
    found = Measures(ResizeRule(), num_samples=4, num_boxes=4)
    found.aspect_ratio.add([1.0] * 4 + [2.0] * 2 + [4.0])
    found.prompt_chars.add(range(1, 200))
    found.centres[0, 1] = 4
    found.centres[-1, 0] = 1
    return found


def axes_of(found, panel):
    return draw_stats("set", found).axes[panel]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_bars_are_as_tall_as_their_counts_and_the_line_is_at_the_median(found):
    axes = axes_of(found, SHAPES)
    assert [bar.get_height() for bar in axes.patches if bar.get_height()] == [4, 2, 1]
    assert axes.get_ylim() == (0, 4)
    assert axes.get_xscale() == "log"
    assert axes.lines[0].get_xdata()[0] == 1.0
    one = [bar for bar in axes.patches if bar.get_x() <= 2.0 < bar.get_x() + bar.get_width()]
    assert [bar.get_height() for bar in one] == [2]


def test_the_heat_map_is_darkest_where_most_are(found):
    (image,) = axes_of(found, PLACES).images
    assert image.origin == "upper"
    depth = image.get_array()
    assert depth.shape == (HEAT_CELLS, HEAT_CELLS)
    assert (depth[0, 1], depth[-1, 0], depth.sum()) == (2, 1, 3)
    assert image.norm(depth[0, 1]) == 1


def test_many_words_are_added_up(found):
    for number in range(10):
        found.sizes.add(f"{number}x1", 10 - number)
    found.width.add(np.ones(55))
    axes = axes_of(found, SIZES)
    assert words(axes)[-2:] == ["4 others", "10  18%"]
    assert len(axes.patches) == 7
    widest, *_, others = (bar.get_width() for bar in axes.patches)
    assert others == widest


@pytest.mark.parametrize(
    "name", ["set", "a$b^{c$", "\u65e5\u672c", "n" * 300], ids=["plain", "dollars", "kanji", "long"]
)
def test_the_file_is_the_same_every_time(found, tmp_path, name):
    found.image_bytes.add([1e-9, 1e12])
    found.rejects["w" * 99] = 0
    for path in (tmp_path / "a.png", tmp_path / "b.png"):
        save_stats(path, name, found)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (2512, 1872)


def test_a_set_without_anything_can_be_drawn(tmp_path):
    figure = draw_stats("empty", Measures(ResizeRule()))
    assert [words(axes) for axes in figure.axes if axes.texts] == [["none"]] * 8


def test_the_command_draws_beside_its_table(tmp_path, capsys):
    write_set(tmp_path / "set", [make_sample()])
    assert main(["stats", str(tmp_path / "set"), "--quiet", "--png", str(tmp_path / "s.png")]) == 0
    assert "samples             1 in 1 shards" in capsys.readouterr().out
    assert (tmp_path / "s.png").stat().st_size > 10_000


def test_without_matplotlib_the_extra_is_named_before_anything_is_read(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "shard_builder.datasets.stats_picture")
    assert main(["stats", str(tmp_path / "absent"), "--png", str(tmp_path / "s.png")]) == 2
    assert "pip install 'grpo_stream[charts]'" in capsys.readouterr().err
