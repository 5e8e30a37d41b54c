import json
from itertools import combinations

import numpy as np
import pytest

from launch.make_scenes import (
    ALL_WORDS,
    GAP,
    KNOWN_WORDS,
    LOOSENESS,
    NEW_WORDS,
    NUM_SHAPES,
    QUESTION_KINDS,
    SIZES,
    SNAP,
    Words,
    draw_scene,
    held_out_set,
    main,
    make_scene,
    pretraining_set,
    training_set,
)
from launch.make_shapes import COLOURS, SIDE
from shard_builder.cli import main as shard_builder

SCENES = [make_scene([7, number], new_words=number % 2 == 1) for number in range(60)]


@pytest.mark.parametrize("scene", SCENES[:20])
def test_every_box_is_exactly_the_pixels_of_its_shape(scene):
    pixels = np.asarray(draw_scene(scene))
    assert pixels.shape == (SIDE, SIDE, 3)
    for words, (x1, y1, x2, y2) in scene:
        alone = pixels[y1:y2, x1:x2]
        ys, xs = np.nonzero((alone != 255).any(2))
        assert (xs.min(), ys.min(), xs.max(), ys.max()) == (0, 0, x2 - x1 - 1, y2 - y1 - 1)
        assert set(map(tuple, alone[ys, xs].tolist())) == {COLOURS[words.colour]}
        pixels = pixels.copy()
        pixels[y1:y2, x1:x2] = 255
    assert (pixels == 255).all()  # nothing is drawn beside the boxes


def test_the_instruction_means_one_shape():
    for scene in SCENES:
        assert len(scene) in NUM_SHAPES
        assert len({words for words, _ in scene}) == len(scene)
        for words, (x1, y1, x2, y2) in scene:
            assert 0 <= x1 < x2 <= SIDE
            assert 0 <= y1 < y2 <= SIDE
            assert SIZES[words.size][0] <= x2 - x1 == y2 - y1 <= SIZES[words.size][1]
        for (_, a), (_, b) in combinations(scene, 2):
            assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= GAP


def test_all_words_come_about_and_new_ones_only_where_they_are_asked_for():
    known = [make_scene([0, number]) for number in range(400)]
    firsts = [scene[0][0] for scene in known]
    assert min(firsts.count(words) for words in KNOWN_WORDS) > 5
    assert not {words for scene in known for words, _ in scene} & set(NEW_WORDS)
    assert {scene[0][0] for scene in SCENES[1::2]} == set(NEW_WORDS)
    for part in range(3):  # each word by itself is known
        assert {words[part] for words in KNOWN_WORDS} == {words[part] for words in ALL_WORDS}


def test_pretraining_names_every_shape_and_points_roughly():
    scenes = list(pretraining_set(200, 1))
    for scene, records in scenes:
        assert [record["prompt"] for record in records] == [f"Click on the {w}" for w, _ in scene]
        for record, (_, (x1, y1, x2, y2)) in zip(records, scene, strict=True):
            x, y = map(int, record["answer"].strip("()").split(", "))
            assert x % SNAP == y % SNAP == 0
            assert 0 <= min(x, y) <= max(x, y) < SIDE
            for value, low, high in ((x, x1, x2), (y, y1, y2)):
                reach = (high - low) / 2 * LOOSENESS
                assert abs(value - (low + high) / 2) <= reach + SNAP
    assert {len(scene) for scene, _ in scenes} == {2, *NUM_SHAPES}


def test_held_out_questions():
    scenes = list(held_out_set(50, 4))
    assert {r["question_kind"] for _, records in scenes for r in records} == set(QUESTION_KINDS)
    for scene, records in scenes[::2]:
        known, swapped = records
        assert known["prompt"] == f"Click on the {scene[0][0]}"
        assert known["solution"] == swapped["solution"] == scene[0][1]
        assert swapped["prompt"] != known["prompt"]
    for scene, (new,) in scenes[1::2]:
        assert Words(*new["prompt"].split()[-3:]) == scene[0][0]
        assert scene[0][0] in NEW_WORDS
        assert new["solution"] == scene[0][1]


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    for make in (pretraining_set, training_set, held_out_set):
        few, more, other = (list(make(*key)) for key in ((3, 1), (6, 1), (3, 2)))
        assert few == more[: len(few)]
        assert few != other


@pytest.mark.parametrize(("split", "num_records"), [("training", 2), ("test", 6)])
def test_the_builder_takes_it(split, num_records, tmp_path):
    words = ["--out", str(tmp_path), "--split", split, "--num-scenes", "2", "--quiet"]
    main(words)
    words = ["build", tmp_path / "records.json", "--images-root", tmp_path, "--out"]
    words += [tmp_path / "out", "--group-by", "image", "--on-error", "fail", "--quiet"]
    assert shard_builder([str(word) for word in words]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert sum(shard["num_samples"] for shard in manifest["shards"]) == num_records


@pytest.mark.parametrize("words", [["--num-scenes", "0"], ["--num-scenes", "1", "--seed", "-1"]])
def test_wrong_usage(tmp_path, words):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--split", "test", *words])
