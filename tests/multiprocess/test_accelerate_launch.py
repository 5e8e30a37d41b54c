"""launch/train.py under the environment that ``accelerate launch`` makes of its file."""

import json

import pytest

from grpo_stream.train.checkpoints.whole_checkpoint import read_marker
from grpo_stream.train.models.tiny import make_tiny_policy
from tests.multiprocess.ranks import run_ranks
from tests.shards.support import make_sample, write_set

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="a training under ZeRO-3, and two starts that are refused"),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accelerate")
    make_tiny_policy(folder / "policy", ["Click on the red circle", "(1, 2)"])
    samples = [make_sample(f"{n:06d}", "Click on the red circle", (56, 56)) for n in range(8)]
    write_set(folder / "shards", samples, 4)
    settings = {
        "model_name_or_path": folder / "policy",
        "shards": folder / "shards",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "max_completion_length": 4,
        "max_steps": 1,
        "report_to": "none",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return ["launch.train", *flags]


def accelerate_with(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)


def test_its_deepspeed_file_is_what_the_plan_says_and_the_run_does(words, tmp_path, monkeypatch):
    zero = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto"}
    zero |= {"gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(zero))
    accelerate_with(monkeypatch, USE_DEEPSPEED="true", DEEPSPEED_CONFIG_FILE=str(path))
    own = [*words, f"--output_dir={tmp_path}/out", "--save_steps=1"]
    told = run_ranks(lambda _: own, timeout=200)
    assert f"ZeRO stage 3, by accelerate launch ({path})" in told[0]
    assert read_marker(tmp_path / "out/checkpoint-1").zero_stage == 3


def test_a_file_that_does_not_fit_is_refused(words, tmp_path, monkeypatch):
    accelerate_with(
        monkeypatch,
        USE_DEEPSPEED="true",
        DEEPSPEED_ZERO_STAGE="3",
        GRADIENT_ACCUMULATION_STEPS="8",
    )
    own = [*words, f"--output_dir={tmp_path}/out"]
    told = run_ranks(lambda _: own, timeout=200, exit_code=2, num_ranks=1)
    assert "gradient_accumulation_steps=8: the run has gradient_accumulation_steps=2" in told[0]


def test_fsdp_is_refused(words, tmp_path, monkeypatch):
    accelerate_with(monkeypatch, USE_FSDP="true", FSDP_VERSION="2")
    own = [*words, f"--output_dir={tmp_path}/out"]
    for told in run_ranks(lambda _: own, timeout=200, exit_code=2):
        assert "ACCELERATE_USE_FSDP='true': the accelerate file asks for FSDP" in told
