import json

import numpy as np
import pytest
from PIL import Image

from launch.make_shapes import COLOURS, MAX_BOX, MIN_BOX, SHAPES, SIDE, main, make_shape, write_set
from shard_builder.cli import main as shard_builder


@pytest.mark.parametrize("number", range(200))
def test_the_box_is_exactly_the_coloured_pixels(number):
    image, record = make_shape(7, number)
    pixels = np.asarray(image)
    assert pixels.shape == (SIDE, SIDE, 3)
    ys, xs = np.nonzero((pixels != 255).any(2))
    assert record["solution"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    x1, y1, x2, y2 = record["solution"]
    assert x2 - x1 == y2 - y1
    assert MIN_BOX <= x2 - x1 <= MAX_BOX
    assert set(map(tuple, pixels[ys, xs])) == {COLOURS[record["colour"]]}
    assert record["prompt"] == f"Click on the {record['colour']} {record['shape']}"
    centre = pixels[(y1 + y2) // 2, (x1 + x2) // 2]
    assert tuple(centre) == COLOURS[record["colour"]]


def test_all_kinds_come_about_equally_often():
    records = [make_shape(0, number)[1] for number in range(600)]
    kinds = [(record["shape"], record["colour"]) for record in records]
    counts = [kinds.count((shape, colour)) for shape in SHAPES for colour in COLOURS]
    assert min(counts) > 25


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path):
    sets = {}
    for name, num_images, seed in (("a", 3, 1), ("b", 6, 1), ("c", 3, 2)):
        write_set(tmp_path / name, num_images, seed, quiet=True)
        records = json.loads((tmp_path / name / "records.json").read_text())
        sets[name] = (records, files_of(tmp_path / name))
    assert sets["a"][0] == sets["b"][0][:3]
    assert sets["a"][1].items() <= sets["b"][1].items()
    assert sets["a"][1] != sets["c"][1]


def test_the_builder_takes_it(tmp_path):
    main(["--out", str(tmp_path), "--num-images", "5", "--seed", "3", "--quiet"])
    words = ["build", tmp_path / "records.json", "--images-root", tmp_path, "--out"]
    words += [tmp_path / "out", "--on-error", "fail", "--quiet"]
    assert shard_builder([str(word) for word in words]) == 0
    assert Image.open(tmp_path / "images" / "000004.png").size == (SIDE, SIDE)


@pytest.mark.parametrize("words", [["--num-images", "0"], ["--num-images", "1", "--seed", "-1"]])
def test_wrong_usage(tmp_path, words):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), *words])
