"""What a checkpoint of ZeRO-3 brings, on its ranks and on others: the settings of now hold, and a
reference model that moves is where it was.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.kill.kill_resume import ZERO3, Run, prepare, rank_server
from grpo_stream.train.checkpoints.universal import make_universal

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="three trainings under ZeRO-3, on two ranks and on one"),
]
REFERENCE, MODEL = "reference.safetensors", "model.safetensors"


@pytest.fixture(scope="module")
def server():
    with rank_server() as server:
        yield server


@pytest.fixture(scope="module")
def two(server, tmp_path_factory):
    """A run on 2 ranks whose reference model moves."""
    folder = tmp_path_factory.mktemp("two")
    settings = prepare(folder) | {
        "deepspeed": ZERO3,
        "num_iterations": 1,
        "weight_decay": 0.5,
        "lr_scheduler_type": "cosine",
        "save_steps": 1,
        "save_total_limit": 9,
        "logging_steps": 1,
        "max_steps": 2,
    }
    run = Run(server, folder / "run", 2, settings)
    run.start()
    make_universal(run.out / "checkpoint-2")
    return run


@pytest.mark.parametrize("num_ranks", [2, 1], ids=["its ranks", "another number of ranks"])
def test_settings_and_reference_after_a_resume(server, two, tmp_path, num_ranks):
    now = {
        "resume_from_checkpoint": two.out / "checkpoint-2",
        "per_device_train_batch_size": 8 // num_ranks,
        "learning_rate": 1e-6,
        "weight_decay": 0.0,
        "max_steps": 4,  # at its old end the rate was 0
        "ref_model_sync_steps": 1000,
    }
    run = Run(server, tmp_path / "run", num_ranks, two.settings | now)
    run.start()
    assert rates(run)[2:] == pytest.approx([5e-7, 1.46e-7], rel=0.01)
    saved, resumed = two.out / "checkpoint-2", run.out / "checkpoint-3"
    change = np.abs(vector(resumed, MODEL) - vector(saved, MODEL))
    assert 0 < change.max() < 2e-6
    assert (vector(resumed, REFERENCE) == vector(saved, REFERENCE)).all()
    assert (vector(saved, REFERENCE) != vector(two.out / "checkpoint-1", REFERENCE)).any()
    for name in ("learning_rate: 0.001 -> 1e-06", "weight_decay: 0.5 -> 0.0", "max_steps: 2 -> 4"):
        assert run.num_in_log(f"resumed with another {name}") == 1


def rates(run):
    state = json.loads((run.out / "trainer_state.json").read_text())
    return [entry["learning_rate"] for entry in state["log_history"] if "loss" in entry]


def vector(folder, name):
    found = load_file(folder / name)
    return np.concatenate([found[name].ravel() for name in sorted(found)])
