import json
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.integrations import TensorBoardCallback

from grpo_stream.boxes import Box, Point
from grpo_stream.train.observe.rollout_sheets import (
    Rollout,
    RolloutSheets,
    group_record,
    pick_groups,
    prompt_text,
    reward_std,
    rollout_group,
    show_in_trackers,
    weighted_rewards,
)
from tests.train.support import make_collator, make_mixed_stream, make_stream_sample

NAN = float("nan")
TEXTS = ["(28, 28)", "(7, 14)", "[14, 14, 28, 28]", "somewhere"]


@pytest.fixture(scope="module")
def rollout(processor):
    """Two prompts of 56x56 images whose originals are twice as large, two answers each."""
    batch = make_collator(processor)([make_stream_sample(number) for number in range(2)])
    parts = np.array([[1, 0], [0, 1], [0, 0], [0, NAN]], np.float32)
    completions = [[{"role": "assistant", "content": text}] for text in TEXTS]
    return Rollout(batch, completions, parts, ["hit", "form"], np.array([1, 0.5], np.float32), 2)


def make_sheets(folder, **changes):
    shown: list[tuple[str, int]] = []
    settings: dict[str, Any] = {
        "rollout_sheet_steps": 10,
        "rollout_sheet_groups": 4,
        "show": lambda path, _, step: shown.append((path.name, step)),
    }
    return RolloutSheets(folder, **(settings | changes)), shown


@pytest.mark.parametrize(
    ("parts", "rewards"),
    [
        ([[1, 1], [0, 1]], [[1.5, 0.5]]),
        ([[1, NAN], [NAN, 1]], [[1.0, 0.5]]),
        ([[NAN, NAN], [0, 0]], [[NAN, 0.0]]),
    ],
)
def test_rewards_are_weighted_as_trl_does(parts, rewards):
    weighted = weighted_rewards(np.array(parts, np.float32), np.array([1, 0.5], np.float32), 2)
    np.testing.assert_array_equal(weighted, np.array(rewards, np.float32))


@pytest.mark.parametrize(
    ("rewards", "std"),
    [([0, 1], 0.5), ([0.3] * 7, 0), ([NAN, NAN], 0), ([NAN, 1, 3], 1), ([1], 0)],
)
def test_the_spread_of_a_group(rewards, std):
    assert reward_std(np.array(rewards, np.float32)) == pytest.approx(std, abs=1e-12)


def test_the_widest_and_the_narrowest_in_turn():
    rewards = np.array([[0, 0], [0, 1], [0, 4], [1, 1], [0, 2]], np.float32)
    assert pick_groups(rewards, 4) == [2, 3, 4, 0]
    assert pick_groups(rewards, 9) == [2, 3, 4, 0, 1]
    assert pick_groups(rewards[:1], 4) == [0]


def test_a_group_is_shown_in_pixels_of_the_image_that_the_model_saw(rollout):
    first, second = (rollout_group(rollout, number) for number in range(2))
    assert first.key == "000000"
    assert "Click on the red circle" in first.prompt
    assert first.image.size == (56, 56)
    assert first.truths == (Box(5, 10, 15, 20, "model"),)  # the solution is in original pixels
    assert [answer.shape for answer in first.answers] == [
        Point(28, 28, "model"),
        Point(7, 14, "model"),
    ]
    assert [answer.reward for answer in first.answers] == [1.0, 0.5]
    assert first.answers[1].parts == [("hit", 0.0), ("form", 1.0)]
    box, words = second.answers
    assert box.shape == Box(14, 14, 28, 28, "model")
    assert (words.shape, words.failure) == (None, "no_numbers")


def test_a_view_is_called_one(rollout):
    regions = ([0, 0, 112, 112], [8, 8, 64, 64])
    extra = [{"view": n, "view_region": region} for n, region in enumerate(regions)]
    views = replace(rollout, batch=rollout.batch | {"extra": extra})
    prompts = [rollout_group(views, number).prompt for number in (0, 1)]
    assert [prompt.partition("]")[0] for prompt in prompts] == [
        "[view 0, all of the image",
        "[view 1, a crop",
    ]
    assert group_record(views, 1)["view_region"] == regions[1]


def test_a_record_is_json_in_original_pixels(rollout):
    record = json.loads(json.dumps(group_record(rollout, 1), allow_nan=False))
    assert record["solution"] == [10, 20, 30, 40]
    assert record["scales"] == [112, 112]
    assert (record["mean"], record["std"]) == (0, 0)
    box, words = record["answers"]
    assert box["box"] == [28, 28, 56, 56]
    assert words == {
        "text": "somewhere",
        "point": None,
        "box": None,
        "failure": "no_numbers",
        "is_refusal": False,
        "reward": 0.0,
        "parts": {"hit": 0.0, "form": None},
    }


def test_the_words_of_a_prompt():
    parts = [{"type": "image"}, {"type": "text", "text": "Click"}]
    assert prompt_text([{"role": "user", "content": parts}]) == "Click"
    assert prompt_text([{"role": "system", "content": "x"}, {"content": "Click"}]) == "Click"


class TestSheets:
    def test_one_is_written_every_so_many_steps(self, rollout, tmp_path):
        sheets, shown = make_sheets(tmp_path / "new")
        for step in (0, 1, 9, 12, 13, 19, 31):
            sheets.offer(rollout, step)
            sheets.wait()
        assert shown == [
            ("step-000000.png", 0),
            ("step-000012.png", 12),
            ("step-000031.png", 31),
        ]
        names = sorted(path.name for path in (tmp_path / "new").iterdir())
        assert names == [f"step-0000{n}.{kind}" for n in ("00", "12", "31") for kind in
                         ("json", "png")]  # fmt: skip
        with Image.open(tmp_path / "new/step-000012.png") as picture:
            assert picture.width == 1316
        record = json.loads((tmp_path / "new/step-000012.json").read_text())
        assert record["global_step"] == 12
        assert [group["key"] for group in record["groups"]] == ["000000", "000001"]

    def test_a_resumed_run_goes_on_in_its_rhythm(self, rollout, tmp_path):
        sheets, shown = make_sheets(tmp_path)
        for step in (37, 39, 40, 41):
            sheets.offer(rollout, step)
            sheets.wait()
        assert shown == [("step-000040.png", 40)]

    def test_none(self, rollout, tmp_path):
        sheets, shown = make_sheets(tmp_path, rollout_sheet_steps=0)
        sheets.offer(rollout, 0)
        sheets.wait()
        assert shown == []
        assert list(tmp_path.iterdir()) == []

    def test_a_step_waits_for_no_sheet(self, rollout, tmp_path):
        goes_on = threading.Event()
        started = threading.Event()

        def show(*_):
            started.set()
            goes_on.wait()

        sheets, _ = make_sheets(tmp_path, rollout_sheet_steps=1, show=show)
        before = time.monotonic()
        sheets.offer(rollout, 0)
        sheets.offer(rollout, 1)
        assert time.monotonic() - before < 0.5
        assert started.wait(10)
        goes_on.set()
        sheets.wait()
        assert sorted(path.name for path in tmp_path.glob("*.png")) == ["step-000000.png"]

    @pytest.mark.parametrize("fault", ["tracker", "patches", "folder"])
    def test_nothing_that_goes_wrong_reaches_the_training(self, rollout, tmp_path, fault):
        folder = tmp_path
        if fault == "patches":
            patches = rollout.batch | {"pixel_values": torch.zeros(8, 1176)}
            rollout = Rollout(
                patches, rollout.completions, rollout.parts, rollout.names, rollout.weights, 2
            )
        if fault == "folder":
            folder = tmp_path / "file"
            folder.write_text("")
        show = (lambda *_: 1 / 0) if fault == "tracker" else print
        sheets, _ = make_sheets(folder, show=show)
        sheets.offer(rollout, 0)
        sheets.wait()
        assert not sheets._thread.is_alive()

    def test_a_full_disk_leaves_no_half_of_a_picture(self, rollout, tmp_path, full_disk):
        full_disk(tmp_path / "step-000000.png")
        sheets, shown = make_sheets(tmp_path)
        sheets.offer(rollout, 0)
        sheets.wait()
        assert [*tmp_path.iterdir()] == shown == []


def test_trackers_are_given_the_picture(tmp_path, monkeypatch):
    logged: list[tuple[str, Any]] = []

    def fake(name):
        return SimpleNamespace(
            Image=lambda path: f"image of {path}", log=lambda data: logged.append((name, data))
        )

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, fake(name))
    board = TensorBoardCallback()
    board.tb_writer = SimpleNamespace(add_image=lambda *args, **_: logged.append(("board", args)))
    handler = SimpleNamespace(callbacks=[object(), board])
    picture = Image.new("RGB", (6, 4))
    show_in_trackers(handler, ["tensorboard", "wandb"])(tmp_path / "a.png", picture, 7)
    (where, (tag, pixels, step)), wandb = logged
    assert (where, tag, pixels.shape, step) == ("board", "rollouts", (4, 6, 3), 7)
    expected = {"rollouts": f"image of {tmp_path / 'a.png'}", "train/global_step": 7}
    assert wandb == ("wandb", expected)


class TestImages:
    """Prompts of one, no and two images."""

    @pytest.fixture
    def mixed(self, processor):
        batch = make_collator(processor)(make_mixed_stream(processor, (0, 1, 2)))
        texts = ["(28, 28)", "no", "5", "(1, 2)", "(7, 140)", "nothing"]
        parts = np.full((6, 1), 0.5, np.float32)
        return Rollout(batch, texts, parts, ["hit"], np.ones(1, np.float32), 2)

    def test_the_image_of_the_target_is_shown(self, mixed):
        one, none, two = (rollout_group(mixed, number) for number in range(3))
        assert one.image.size == (112, 84)
        assert two.image.size == (84, 140)
        assert two.prompt.startswith("[image 2 of 2] ")
        assert two.truths == (Box(2, 4, 84, 140, "model"),)
        assert two.answers[0].shape == Point(7, 140, "model")
        assert none.prompt.startswith("[no image] ")
        assert (none.truths, none.asks_place) == ((), False)
        assert {(answer.shape, answer.failure) for answer in none.answers} == {(None, None)}

    def test_a_sheet_and_its_json(self, mixed, tmp_path):
        sheets, shown = make_sheets(tmp_path)
        sheets.offer(mixed, 0)
        sheets.wait()
        assert shown == [("step-000000.png", 0)]
        groups = json.loads((tmp_path / "step-000000.json").read_text())["groups"]
        assert [group.get("solution_images") for group in groups] == [None, None, [1]]
        assert [group["scales"] for group in groups] == [[112, 84], [], [[56, 56], [84, 140]]]
