"""The script for a GPU runs at small size without one."""

import json
import math
import os

import pytest

from benchmarks.__main__ import main
from benchmarks.gpu import gpu_blocks
from benchmarks.gpu.expectations import BLOCKS, red
from benchmarks.gpu.gpu_bench import Bench
from benchmarks.gpu.gpu_blocks import micro_step, rollout
from benchmarks.gpu.training_blocks import memory

pytestmark = [
    pytest.mark.slow(reason="a process that imports the training stack for each block"),
    pytest.mark.multiprocess,
]


def run(tmp_path, *words):
    path = tmp_path / "found.json"
    assert main(["gpu_check", "--model", "small", "--out", str(path), *words]) == 0
    return json.loads(path.read_text())


def test_every_block_has_figures_and_what_was_expected(tmp_path, capsys):
    assert [block.__name__ for block in gpu_blocks.BLOCKS] == list(BLOCKS)
    alone = ["environment", "kernels", "exactness", "tower", "zero"]
    found = run(tmp_path, "--seconds", "200", "--blocks", *alone)
    assert list(found) == alone
    assert {name: one["error"] for name, one in found.items() if "error" in one} == {}
    for name, one in found.items():
        assert one["expected"] == [expected.words for expected in BLOCKS[name].expected]
    # What is no matter of time or of a GPU holds here, too.
    assert found["environment"]["red"] == ["on a GPU expandable_segments are in allocator"]
    assert "red: environment: on a GPU expandable_segments" in capsys.readouterr().out
    assert found["kernels"]["red"] == []
    assert found["exactness"]["red"] == []
    assert found["exactness"]["packed_float32_error"] < 1e-5
    assert "the same to bfloat16: 0.05" not in found["tower"]["red"]
    assert "flash_attention_2" in found["tower"]["flash"]  # not installed: says so


@pytest.mark.parametrize("block", [micro_step, rollout], ids=lambda block: block.__name__)
def test_seconds(block):
    assert all(number > 0 for number in block(Bench("small")).values())


def test_memory_is_near_the_estimate():
    found = memory(Bench("deep"))
    assert list(found) == [f"{n} groups{c}" for c in (", checkpointing", "") for n in (1, 4)]
    for name, one in found.items():
        if "checkpointing" not in name:  # of a layer that is computed again nothing is kept
            assert 0.6 < one["measured"] / one["estimated"] < 1.25, name


def test_a_step_that_is_not_finite_is_left_and_logged(tmp_path):
    found = run(tmp_path, "--seconds", "200", "--blocks", "bad_step")["bad_step"]
    assert found["red"] == []
    assert found["moved"] == [True, False, True]
    assert "global step 2: the gradient of samples" in found["logged"][0]


def test_whole_steps_beside_trls(tmp_path):
    found = run(tmp_path, "--seconds", "280", "--blocks", "steps")["steps"]
    assert found["max_abs_logprob_diff"] < 1e-4
    assert found["seconds"]["ours"]["step"] > 0
    assert found["seconds"]["trl"]["step"] > 0


def test_a_block_that_takes_too_long_is_left_with_what_it_started(tmp_path, monkeypatch):
    killed, kill = [], os.killpg

    def noted(*words):
        killed.append(words)
        kill(*words)

    monkeypatch.setattr(os, "killpg", noted)
    found = run(tmp_path, "--blocks", "environment", "--seconds", "0.1")
    assert found["environment"]["error"] == "took longer than 0.1 s"
    assert found["environment"]["red"] == found["environment"]["expected"]
    assert len(killed) == 1


def test_all_blocks_together_take_ten_minutes_at_most():
    assert math.fsum(block.seconds for block in BLOCKS.values()) <= 600


def test_what_is_red():
    assert red("bad_step", {"moved": [True] * 3, "finite": True, "logged": ["one"]}) == [
        "weights move in steps 1 and 3, not in 2"
    ]
    assert len(red("bad_step", {})) == 3
