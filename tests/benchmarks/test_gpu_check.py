"""The script for a GPU runs at small size without one."""

import json
import math
import os
import subprocess
import sys

import pytest

from benchmarks.__main__ import main
from benchmarks.gpu.device_rates import bytes_of_a_token
from benchmarks.gpu.expectations import BLOCKS, red
from benchmarks.gpu.gpu_bench import Bench
from benchmarks.gpu.gpu_blocks import BLOCKS as RUN_BLOCKS
from benchmarks.gpu.gpu_blocks import micro_step
from benchmarks.gpu.gpu_check import figures_of
from benchmarks.gpu.rollout_block import rollout
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
    assert [block.__name__ for block in RUN_BLOCKS] == list(BLOCKS)
    alone = ["environment", "kernels", "exactness", "tower", "zero"]
    found = run(tmp_path, "--seconds", "200", "--blocks", *alone)
    assert list(found) == alone
    assert {name: one["error"] for name, one in found.items() if "error" in one} == {}
    for name, one in found.items():
        assert one["expected"] == [expected.words for expected in BLOCKS[name].expected]
    printed = capsys.readouterr().out
    # What is no matter of time or of a GPU holds here, too.
    assert found["environment"]["red"] == ["on a GPU expandable_segments are in allocator"]
    assert found["environment"]["bytes_a_second"] > 1e8
    assert "red: environment: on a GPU expandable_segments" in printed
    assert "  ok  expected: flash kernels attend" in printed
    assert found["kernels"]["red"] == []
    assert found["exactness"]["red"] == []
    assert found["exactness"]["packed_float32_error"] < 1e-5
    assert found["tower"]["batched_difference"] < 0.05
    assert "flash_attention_2" in found["tower"]["flash"]["error"]  # not installed: says so
    assert found["zero"]["stage 3, leaves"] > 0


def test_seconds_of_micro_steps_beside_the_arithmetic():
    bench = Bench("small")
    micro_step(bench)
    rate, *found = bench.figures.values()
    assert rate > 0
    assert len(found) == 4
    assert all(one["seconds"] > one["arithmetic"] > 0 for one in found)


def test_a_token_eager_compiled_and_in_generate_beside_reading_the_weights():
    bench = Bench("small")
    rollout(bench)
    found = bench.figures
    for name in ("eager", "generate", "compiled"):
        seconds = found[name]["seconds_a_token"]
        assert seconds > found["reading_weights"] > 0
        ratio = seconds / found["reading_weights"]
        assert found[name]["times_reading_weights"] == pytest.approx(ratio)
    assert found["compiled"]["fallback"] is None
    assert found["compiled"]["is_compiled"]
    assert not found["eager"]["is_compiled"]


def test_memory_is_near_the_estimate():
    bench = Bench("deep")
    memory(bench)
    assert list(bench.figures) == [
        f"{n} groups{c}" for c in (", checkpointing", "") for n in (1, 4)
    ]
    for name, one in bench.figures.items():
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


BLOCK = """
import os, sys, time
print('a line of a library figure: {"one": 1}')
print('figure: {"two": 2}', flush=True)
print('figure: {"gpu": "' + os.environ["CUDA_VISIBLE_DEVICES"] + '"}', flush=True)
if sys.argv[-1] == "hangs":
    print('figure: {"cut', end="", flush=True)
    time.sleep(60)
raise RuntimeError("no such kernel")
"""


@pytest.mark.parametrize(("ends", "error"), [("hangs", "took longer"), ("fails", "no such kernel")])
def test_figures_before_the_end_of_a_block_are_kept(tmp_path, monkeypatch, ends, error):
    """The time that it left, too, is there for the next one."""
    (tmp_path / "block.py").write_text(BLOCK)
    given = []

    class Stub(subprocess.Popen[str]):
        def __init__(self, command, **kwargs):
            super().__init__([sys.executable, str(tmp_path / "block.py"), ends], **kwargs)

        def communicate(self, input=None, timeout=None):  # noqa: A002 - its own name
            given.append(timeout)
            return super().communicate(input, timeout)

    monkeypatch.setattr(subprocess, "Popen", Stub)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")  # a trainer would take both, by DataParallel
    found = run(tmp_path, "--blocks", "environment", "kernels", "--seconds", "3")
    for one in found.values():
        assert ("one" in one, one["two"], one["gpu"]) == (False, 2, "3")
        assert error in one["error"]
        assert one["red"] == one["expected"]
    if ends == "fails":
        assert 4 < given[1] <= 6


def test_a_measurement_that_fails_leaves_the_others(capsys):
    bench = Bench("small")
    bench.attempt("first", lambda: 1 / 0)
    bench.attempt("second", lambda: 2)
    found = {"first": {"error": "ZeroDivisionError: division by zero"}, "second": 2}
    assert bench.figures == found
    assert figures_of(capsys.readouterr().out) == found


def test_bytes_of_a_token_are_those_of_text_model_and_head():
    bench = Bench("small")
    model = bench.policy()
    head = model.get_output_embeddings().weight
    tied = model.get_input_embeddings().weight is head
    text = sum(one.numel() for one in model.get_decoder().layers.parameters())
    norm = sum(one.numel() for one in model.get_decoder().norm.parameters())
    assert bytes_of_a_token(model) == 2 * (text + norm + head.numel())
    assert tied == bench.config.text_config.tie_word_embeddings


def test_all_blocks_together_take_ten_minutes_at_most():
    assert math.fsum(block.seconds for block in BLOCKS.values()) <= 600


def test_what_is_red():
    assert red("bad_step", {"moved": [True] * 3, "finite": True, "logged": ["one"]}) == [
        "weights move in steps 1 and 3, not in 2"
    ]
    assert len(red("bad_step", {})) == 3
