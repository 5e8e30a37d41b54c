from types import SimpleNamespace

import pytest

from grpo_stream.train.cluster import preflight_needs as module
from grpo_stream.train.cluster.preflight_needs import find_needs, run_checks
from grpo_stream.train.cluster.preflight_report import Needs
from grpo_stream.train.setup.memory.model_sizes import MetaModel
from tests.train.setup.small_configs import small_config

N = 3_754_622_976
ZERO_3 = {"zero_optimization": {"stage": 3}}


def settings(model="Qwen/Qwen2.5-VL-3B-Instruct", *, use_peft=False, **changes):
    fields = {"world_size": 8, "bf16": True, "fp16": False, "beta": 0.0, "use_cpu": False}
    args = SimpleNamespace(**{**fields, "save_only_model": False, "output_dir": "out", **changes})
    data = SimpleNamespace(shards=["a=0.5", "b=0.5"], eval_shards=["c", "a"], cache_dir="cache")
    return SimpleNamespace(
        args=args, model=SimpleNamespace(model_name_or_path=model, use_peft=use_peft), data=data
    )


@pytest.mark.parametrize(
    ("changes", "zero", "gpu", "host", "output"),
    [
        ({}, {}, 16, 0, 14),
        ({"bf16": False}, {}, 20, 0, 16),
        ({"use_cpu": True, "bf16": False}, {}, 0, 20, 16),
        ({"save_only_model": True}, {}, 16, 0, 2),
        ({"beta": 0.1}, {}, 18, 0, 14),
        ({}, {"offload_optimizer": {"device": "cpu"}}, 2, 14, 14),
        ({}, {"offload_optimizer": {"device": "none"}}, 16, 0, 14),
    ],
)
def test_bytes_a_weight(changes, zero, gpu, host, output):
    deepspeed = {"zero_optimization": {"stage": 3, **zero}}
    needs = find_needs(settings(**changes), deepspeed)
    found = (needs.gpu_per_rank, needs.host_per_rank, needs.output_per_rank)
    assert found == pytest.approx(tuple(n * N / 8 for n in (gpu, host, output)), rel=0.01)


def test_gradients_that_are_summed_in_float32():
    needs = find_needs(settings(), ZERO_3 | {"data_types": {"grad_accum_dtype": "fp32"}})
    assert needs.gpu_per_rank == pytest.approx(18 * N / 8, rel=0.01)


@pytest.mark.parametrize(
    ("model", "use_peft", "deepspeed"),
    [
        ("some/model", False, ZERO_3),
        ("Qwen/Qwen2.5-VL-3B-Instruct", True, ZERO_3),
        ("Qwen/Qwen2.5-VL-3B-Instruct", False, {"zero_optimization": {"stage": 2}}),
        ("Qwen/Qwen2.5-VL-3B-Instruct", False, None),
        (
            "Qwen/Qwen2.5-VL-3B-Instruct",
            False,
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
        ),
    ],
)
def test_what_nobody_can_tell_is_not_asked_for(model, use_peft, deepspeed):
    assert find_needs(settings(model, use_peft=use_peft), deepspeed) == Needs()


def test_a_folder_of_another_family(tmp_path):
    config = small_config("llava")
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    num_weights = MetaModel(config).num_weights
    assert find_needs(settings(str(tmp_path)), ZERO_3).gpu_per_rank == 16 * -(-num_weights // 8)


def test_every_data_set_is_tried_once(monkeypatch):
    monkeypatch.setattr(module, "run_settings", lambda _: {"deepspeed": ZERO_3, "seed": 1})
    checks = run_checks(settings())
    assert checks.urls == ["a", "b", "c"]
    assert checks.settings["seed"] == 1
    assert (checks.output_dir, checks.cache_dir) == ("out", "cache")
    assert checks.needs.gpu_per_rank > 0
