"""Supervised fine-tuning on two ZeRO-3 ranks over gloo: killed, resumed, and beside one rank."""

import json
from pathlib import Path

import pytest

from grpo_stream.train.models.tiny import make_tiny_policy
from tests.multiprocess.ranks import run_ranks
from tests.train.support import TASK_TEXTS, write_shapes

ROOT = Path(__file__).resolve().parents[2]
_OF_THE_CLOCK = ("time/", "speed/", "health/", "stream/", "train_")

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="four trainings: on two ranks, killed, resumed, and on one"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    write_shapes(folder, 18)
    make_tiny_policy(folder / "tiny", TASK_TEXTS)
    return folder


def train(folder, name, *, num_ranks=2, exit_code=0):
    """Starts launch/sft.py, on 8 records a global batch; epochs have two of them."""
    settings = {
        "model_name_or_path": folder / "tiny",
        "shards": folder / "shards",
        "output_dir": folder / name,
        "deepspeed": ROOT / "ds_configs/zero3_cpu.json",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4 // num_ranks,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "gradient_checkpointing": "false",
        "resume_from_checkpoint": "auto",
        "save_steps": 1,
        "logging_steps": 2,
        "report_to": "none",
        "disable_tqdm": "true",
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    words = ["tests.multiprocess.sft_probe", *flags]
    return run_ranks(lambda _: words, timeout=200, num_ranks=num_ranks, exit_code=exit_code)


def logs(folder, name):
    entries = json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
    return [
        {key: value for key, value in entry.items() if not key.startswith(_OF_THE_CLOCK)}
        for entry in entries
        if "loss" in entry
    ]


def test_a_killed_run_ends_as_if_it_had_not_been(folder, monkeypatch):
    train(folder, "whole")
    monkeypatch.setenv("KILL_AT", "3")
    train(folder, "killed", exit_code=-9)
    assert (folder / "killed/checkpoint-3").is_dir()  # a partial one
    monkeypatch.delenv("KILL_AT")
    told, _ = train(folder, "killed")
    assert "begins from" in told
    assert "checkpoint-2" in told
    assert len(logs(folder, "whole")) == 2
    assert logs(folder, "killed") == logs(folder, "whole")
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]

    train(folder, "alone", num_ranks=1)  # the same global batches, cut otherwise
    for found, expected in zip(logs(folder, "alone"), logs(folder, "whole"), strict=True):
        for name in ("loss", "grad_norm", "mean_token_accuracy", "num_tokens", "epoch"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
