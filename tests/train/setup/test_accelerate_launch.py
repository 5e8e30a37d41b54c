import pytest
from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.accelerate_launch import check_launcher, describe_deepspeed
from grpo_stream.train.setup.run_plan import parse_settings, plan_run
from tests.train.support import QUIET, write_shapes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_FSDP", "1"),
        ("ACCELERATE_USE_MEGATRON_LM", "True"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("ACCELERATE_MIXED_PRECISION", "fp8"),
    ],
)
def test_what_an_accelerate_file_cannot_have(
    monkeypatch, make_args, make_trainer, tmp_path, name, value
):
    check_launcher()
    monkeypatch.setenv(name, "false" if name.startswith("ACCELERATE_USE") else "no")
    check_launcher()
    args = make_args()
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}='{value}'"):
        make_trainer(args)
    shapes = write_shapes(tmp_path, 4)
    words = ["--model_name_or_path", "some/model", "--shards", str(shapes.shards)]
    words += ["--num_generations", "8", "--report_to", "none"]
    monkeypatch.setenv(name, "no")
    settings = parse_settings(words, use_cpu=True)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}='{value}'"):
        plan_run(settings)


def test_the_precision_of_an_accelerate_file_is_the_runs(monkeypatch, tmp_path):
    shapes = write_shapes(tmp_path, 4)
    words = ["--model_name_or_path", "some/model", "--shards", str(shapes.shards)]
    words += ["--num_generations", "8", "--report_to", "none"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    lines = dict(plan_run(parse_settings(words, use_cpu=True)).lines)
    assert (lines["precision"], lines["deepspeed"]) == ("bf16", "none")


def test_the_setting_comes_first(tmp_path):
    args = GRPOConfig(str(tmp_path), **QUIET)
    args.deepspeed = "ds_configs/zero3.json"
    assert describe_deepspeed(args) == "ds_configs/zero3.json"
