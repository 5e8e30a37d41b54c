"""launch/train.py on two ranks under ZeRO-3, with an engine each or one over both."""

import json
from pathlib import Path

import pytest

from tests.multiprocess.ranks import run_ranks
from tests.vllm.rank_probe import NUM_CONTROL, NUM_SYNCED
from tests.vllm.test_colocated import BOUND, DIFFERENCE, TIMES

NUM_RANKS = 2


def forget_shared_memory():
    """vLLM (0.30) gives what CPU ranks share the same name in each run, and leaves it behind.

    The next run could not make it. Who has it open keeps it.
    """
    for path in Path("/dev/shm").glob("*-tp:0-[[]0-1]-cpushm*"):  # noqa: S108 - where vLLM makes it
        path.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _no_engine_before_this_one():
    forget_shared_memory()
    yield
    forget_shared_memory()


@pytest.fixture
def run(folder_of, shapes, tmp_path, monkeypatch):
    def run(**changes):
        monkeypatch.setenv("PROBE_DIR", str(tmp_path))
        settings = {
            "model_name_or_path": folder_of("qwen2_5_vl"),
            "shards": shapes.shards,
            "output_dir": tmp_path / "out",
            "deepspeed": "ds_configs/zero3_cpu.json",
            "reward_funcs": "tests.train.runs:spread_reward",
            "dtype": "float32",
            "bf16": "false",
            "use_vllm": "true",
            "vllm_mode": "colocate",
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 8,
            "min_pixels": 56 * 56,
            "max_pixels": 84 * 84,
            "max_steps": NUM_SYNCED + NUM_CONTROL,
            "learning_rate": 1e-3,
            "gradient_checkpointing": "false",
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            **changes,
        }
        flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
        told = run_ranks(lambda _: ["tests.vllm.rank_probe", *flags], timeout=400)
        logs = [
            json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(NUM_RANKS)
        ]
        return told, [[log[DIFFERENCE] for log in own if DIFFERENCE in log] for own in logs]

    return run


@pytest.mark.parametrize(
    ("family", "tensor_parallel_size"), [("qwen2_5_vl", 1), ("qwen2_5_vl", 2), ("qwen3_5", 1)]
)
def test_both_ranks_sample_from_the_policy(run, folder_of, family, tensor_parallel_size):
    told, differences = run(
        model_name_or_path=folder_of(family), vllm_tensor_parallel_size=tensor_parallel_size
    )
    for found in differences:
        assert max(found[:NUM_SYNCED]) < BOUND
        assert min(found[NUM_SYNCED:]) > TIMES * BOUND
    assert "Traceback" not in "".join(told)
