"""Groups over several views on two ranks under ZeRO-3, and their resume."""

import json

import pytest
import torch
from safetensors.torch import load_file

from grpo_stream.train.models.tiny import make_tiny_policy
from tests.multiprocess.ranks import run_ranks
from tests.train.support import TASK_TEXTS, write_shapes

NUM_RANKS, NUM_GENERATIONS, NUM_VIEWS, NUM_STEPS = 2, 4, 2, 4

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="three trainings on two ranks"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    make_tiny_policy(folder / "tiny", TASK_TEXTS)
    write_shapes(folder, 12)
    return folder


def train(folder, out, *flags):
    """What each rank scored."""
    settings = {
        "model_name_or_path": folder / "tiny",
        "shards": folder / "shards",
        "output_dir": folder / out,
        "deepspeed": "ds_configs/zero3_cpu.json",
        "per_device_train_batch_size": 8,
        "num_generations": NUM_GENERATIONS,
        "num_views": NUM_VIEWS,
        "num_iterations": 2,  # each second checkpoint is within a generation batch
        "max_completion_length": 4,
        "gradient_checkpointing": "false",
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_steps": 1,
        "logging_steps": 1,
        "seed": 42,
        "reward_funcs": "tests.multiprocess.probe:spread_reward",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_DIR", str(folder))
        run_ranks(lambda _: ["tests.multiprocess.probe", *words, *flags], timeout=400)
    ranks = range(NUM_RANKS)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in ranks]


def test_two_ranks_train_on_views_and_resume_exactly(folder):
    whole = train(folder, "whole", "--max_steps", NUM_STEPS)
    first = train(folder, "cut", "--max_steps", 1)
    rest = train(folder, "cut", "--max_steps", NUM_STEPS, "--resume_from_checkpoint", "true")
    assert all(seen["zero_stage"] == 3 and seen["shared_prefix"] for seen in whole)
    for seen, before, after in zip(whole, first, rest, strict=True):
        assert len(seen["keys"]) == NUM_STEPS // 2
        for name in ("keys", "views", "scales"):
            assert before[name] + after[name] == seen[name]
        for keys, views in zip(seen["keys"], seen["views"], strict=True):
            assert views == [0, 0, 1, 1] * (len(keys) // NUM_GENERATIONS)
            groups = [keys[n : n + NUM_GENERATIONS] for n in range(0, len(keys), NUM_GENERATIONS)]
            assert all(len(set(group)) == 1 for group in groups)
    keys_of_ranks = [{key for keys in seen["keys"] for key in keys} for seen in whole]
    assert not keys_of_ranks[0] & keys_of_ranks[1]
    names = [folder / out / f"checkpoint-{NUM_STEPS}/model.safetensors" for out in ("whole", "cut")]
    weights, resumed = map(load_file, names)
    assert [name for name in weights if not torch.equal(weights[name], resumed[name])] == []
    initial = load_file(folder / "tiny/model.safetensors")
    assert any(not torch.equal(weights[name], initial[name]) for name in weights)
