"""The script for a GPU runs at small size without one."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.gpu.gpu_blocks import BLOCKS, Bench, micro_step, rollout
from benchmarks.gpu.gpu_check import EXPECTED

pytestmark = [
    pytest.mark.slow(reason="a process that imports the training stack for each block"),
    pytest.mark.multiprocess,
]


def run(tmp_path, *words):
    path = tmp_path / "found.json"
    assert main(["gpu_check", "--model", "small", "--out", str(path), *words]) == 0
    return json.loads(path.read_text())


def test_every_block_has_figures_and_what_was_expected(tmp_path):
    assert [block.__name__ for block in BLOCKS] == list(EXPECTED)
    alone = ["environment", "kernels", "exactness", "tower", "zero"]
    found = run(tmp_path, "--seconds", "200", "--blocks", *alone)
    assert list(found) == alone
    assert {name: one["error"] for name, one in found.items() if "error" in one} == {}
    assert all(one["expected"] == EXPECTED[name] for name, one in found.items())
    assert found["environment"]["cudnn_attention"] is False
    assert found["kernels"]["log_sums"] is True
    assert found["exactness"]["packed_float32_error"] < 1e-5
    assert found["exactness"]["packed_error"] < 1.5 * found["exactness"]["plain_error"]
    assert found["tower"]["largest_difference"] < 0.05
    assert "flash_attention_2" in found["tower"]["flash"]  # not installed: says so


@pytest.mark.parametrize("block", [micro_step, rollout], ids=lambda block: block.__name__)
def test_seconds(block):
    assert all(number > 0 for number in block(Bench("small")).values())


def test_a_block_that_takes_too_long_is_left(tmp_path):
    found = run(tmp_path, "--blocks", "environment", "--seconds", "0.1")
    assert found["environment"]["error"] == "took longer than 0.1 s"
