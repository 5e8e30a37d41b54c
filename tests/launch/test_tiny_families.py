"""Tiny policies of the families that users begin with: made and trained by the launch scripts."""

import json

import pytest

from benchmarks.kill.kill_resume import Run, rank_server
from launch.make_shapes import write_set
from tests.launch.support import load_script

FAMILIES = (
    "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_vl_moe", "gemma3", "internvl", "glm4v", "smolvlm",
    "llava_next",
)  # fmt: skip

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="a training of each of nine families"),
]


@pytest.fixture(scope="module")
def server():
    with rank_server() as server:
        yield server


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("shapes"), 6, seed=0, quiet=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_trained_with_no_flag_of_its_own(server, records, family, tmp_path):
    words = ["--json", records, "--out", tmp_path / "tiny", "--family", family]
    assert load_script("tiny_policy").main([str(word) for word in words]) == 0
    settings = {
        "model_name_or_path": tmp_path / "tiny",
        "json": records,
        "images_root": records.parent,
        # Of the run's length alone.
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "max_completion_length": 4,
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "reward_funcs": "benchmarks.kill.kill_run:noting_reward",
    }
    run = Run(server, tmp_path / "run", 1, settings)
    assert run.start()
    way = "packed" if family in ("qwen2_5_vl", "qwen3_vl") else "forked"
    assert run.num_in_log(f"shared_prefix: {way}") == 1
    assert run.num_in_log("groups are plain") == 0
    state = json.loads((run.out / "trainer_state.json").read_text())
    assert state["global_step"] == 1
    assert run.weights()
