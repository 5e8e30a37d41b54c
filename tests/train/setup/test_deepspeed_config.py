import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.deepspeed_config import (
    check_batch_arithmetic,
    check_zero_config,
    load_zero_config,
    notes_of_sums,
)

RUN: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 3,
    "world_size": 2,
    "bf16": True,
    "fp16": False,
    "max_grad_norm": 0.5,
}
AUTO: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
}
OFFLOAD_NVME = {"device": "nvme", "nvme_path": "/local_nvme"}


def changed(**changes):
    """AUTO with ``changes``; a name's double underscore leads one level down."""
    config = copy.deepcopy(AUTO)
    for name, value in changes.items():
        *path, last = name.split("__")
        node: Any = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


def without(*names):
    return {name: value for name, value in AUTO.items() if name not in names}


class TestLoad:
    def test_gives_the_object(self, tmp_path):
        path = tmp_path / "zero.json"
        path.write_text(json.dumps(AUTO))
        assert load_zero_config(path) == load_zero_config(str(path)) == AUTO

    @pytest.mark.parametrize("content", [b"[1]", b"{,}", b"", b"\xff\xfe", b'"zero"'])
    def test_refuses_what_is_no_json_object(self, tmp_path, content):
        path = tmp_path / "zero.json"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"zero\.json.*JSON"):
            load_zero_config(path)

    def test_a_missing_file_names_one_that_exists(self, tmp_path):
        with pytest.raises(ConfigError, match=r"No such file.*ds_configs/zero3\.json"):
            load_zero_config(tmp_path / "zero4.json")


class TestZeroConfig:
    @pytest.mark.parametrize(
        "config",
        [
            AUTO,
            without("train_batch_size", "bf16", "fp16"),
            changed(train_batch_size=24, train_micro_batch_size_per_gpu=4),
            changed(gradient_accumulation_steps=3, gradient_clipping=0.5),
            changed(bf16__enabled=True, fp16__enabled=False),
            changed(zero_optimization__offload_param={"device": "cpu"}),
            changed(zero_optimization__offload_optimizer=OFFLOAD_NVME),
            changed(zero_optimization__stage3_prefetch_bucket_size="auto"),
        ],
    )
    def test_accepts(self, config):
        before = copy.deepcopy(config)
        assert check_zero_config(config, **RUN) == []
        assert config == before

    @pytest.mark.parametrize(
        ("changes", "field", "works"),
        [
            ({"zero_optimization": None}, "zero_optimization", '{"stage": 3}'),
            ({"zero_optimization": True}, "zero_optimization", '{"stage": 3}'),
            ({"zero_optimization__stage": 4}, "zero_optimization.stage", "0, 1, 2 or 3"),
            ({"zero_optimization__stage": True}, "zero_optimization.stage", "0, 1, 2 or 3"),
            ({"zero_optimization__stage": "3"}, "zero_optimization.stage", "0, 1, 2 or 3"),
            ({"zero_optimization": {}}, "zero_optimization.stage", "0, 1, 2 or 3"),
            ({"train_batch_size": 12}, "train_batch_size", "write 24"),
            (
                {"bf16__bf16_master_weights_and_grads": True},
                "bf16.bf16_master_weights_and_grads",
                "use false",
            ),
            ({"bf16__check_grad_overflow": False}, "bf16.check_grad_overflow", "use true"),
            (
                {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
                "zero_optimization.compute_grad_norm",
                "use true",
            ),
            ({"data_types": "fp32"}, "data_types", '{"grad_accum_dtype": "fp32"}'),
            (
                {"data_types": {"grad_accum_dtype": "float32"}},
                "data_types.grad_accum_dtype",
                '"fp32"',
            ),
            (
                {"data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization__stage": 0},
                "data_types.grad_accum_dtype",
                "stage 1, 2 or 3",
            ),
            ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "write 4"),
            ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps", "write 3"),
            ({"gradient_clipping": 1.0}, "gradient_clipping", "max_grad_norm=0.5"),
            ({"bf16__enabled": False}, "bf16.enabled", "write bf16: false"),
            ({"fp16__enabled": True}, "fp16.enabled", "write fp16: true"),
            ({"fp16__enabled": True, "bf16__enabled": True}, "fp16.enabled", "auto"),
            ({"bf16": True}, "bf16", '{"enabled": "auto"}'),
            (
                {"zero_optimization__offload_param": {"device": "disk"}},
                "zero_optimization.offload_param.device",
                "none, cpu, nvme",
            ),
            (
                {"zero_optimization__offload_param": {"device": "nvme"}},
                "zero_optimization.offload_param.nvme_path",
                "/local_nvme",
            ),
            (
                {
                    "zero_optimization__stage": 2,
                    "zero_optimization__offload_param": {"device": "cpu"},
                },
                "zero_optimization.offload_param.device",
                "stage 3",
            ),
            (
                {
                    "zero_optimization__stage": 0,
                    "zero_optimization__offload_optimizer": {"device": "cpu"},
                },
                "zero_optimization.offload_optimizer.device",
                "stage 1",
            ),
            (
                {"zero_optimization__offload_optimizer": "cpu"},
                "zero_optimization.offload_optimizer",
                '{"device": "cpu"}',
            ),
            (
                {"zero_optimization__stage3_prefetch_bucket": 1},
                "zero_optimization.stage3_prefetch_bucket",
                "ds_configs/README.md",
            ),
            (
                {"zero_optimization__reduce_bucket_size": -1},
                "zero_optimization.reduce_bucket_size",
                "greater than 0",
            ),
        ],
    )
    def test_names_the_clash_and_a_value_that_works(self, changes, field, works):
        with pytest.raises(ConfigError) as caught:
            check_zero_config(changed(**changes), **RUN)
        assert caught.value.field == field
        assert works in caught.value.expected

    @pytest.mark.parametrize(
        "name",
        ["train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"],
    )
    def test_a_missing_value_is_not_auto(self, name):
        with pytest.raises(ConfigError, match='"auto" here') as caught:
            check_zero_config(without(name), **RUN)
        assert (caught.value.field, caught.value.value) == (name, None)

    def test_a_missing_value_is_fine_where_the_default_is_the_runs(self):
        run = {**RUN, "gradient_accumulation_steps": 1, "max_grad_norm": 1.0}
        config = without("gradient_accumulation_steps", "gradient_clipping")
        assert check_zero_config(config, **run) == []

    def test_a_run_has_one_precision(self):
        with pytest.raises(ConfigError, match="bf16 is on too"):
            check_zero_config(AUTO, **{**RUN, "fp16": True})

    @pytest.mark.parametrize(
        ("num_micro_steps", "is_16_bits", "types", "is_noted"),
        [
            (4, True, {}, True),
            (1, True, {}, False),
            (4, False, {}, False),
            (4, True, {"grad_accum_dtype": "fp32"}, False),
        ],
    )
    def test_sums_in_16_bits_are_noted(self, num_micro_steps, is_16_bits, types, is_noted):
        config = changed(data_types=types)
        assert check_zero_config(config, **RUN) == []
        notes = notes_of_sums(config, num_micro_steps, is_16_bits=is_16_bits)
        assert [("4 micro-steps" in note, '"fp32"' in note) for note in notes] == (
            [(True, True)] * is_noted
        )

    def test_float32_runs(self):
        config = changed(bf16__enabled=False, fp16__enabled=False)
        assert check_zero_config(config, **{**RUN, "bf16": False}) == []

    def test_an_unset_max_grad_norm_leaves_clipping_to_the_file(self):
        config = changed(gradient_clipping=7.0)
        assert check_zero_config(config, **{**RUN, "max_grad_norm": None}) == []

    @pytest.mark.parametrize(
        ("zero", "words"),
        [({"stage": 2}, "every rank holds all weights"), ({"stage": 3}, "zero_to_fp32")],
    )
    def test_notes_what_works_with_a_catch(self, zero, words):
        (note,) = check_zero_config(changed(zero_optimization=zero), **RUN)
        assert words in note


def arithmetic(micro, steps, group, *, accumulation=None, iterations=1, world=2):
    return check_batch_arithmetic(
        world_size=world,
        per_device_train_batch_size=micro,
        steps_per_generation=steps,
        gradient_accumulation_steps=steps * iterations if accumulation is None else accumulation,
        num_generations=group,
        num_iterations=iterations,
    )


class TestBatchArithmetic:
    @pytest.mark.parametrize(
        ("micro", "steps", "group", "world", "prompts"),
        [
            (8, 4, 8, 2, 8),
            (1, 8, 8, 1, 1),
            (4, 2, 8, 10_000, 10_000),
            (3, 8, 6, 2, 8),
            (2, 1, 2, 1, 1),
        ],
    )
    def test_counts_the_prompts_of_all_ranks(self, micro, steps, group, world, prompts):
        assert arithmetic(micro, steps, group, world=world) == prompts

    @pytest.mark.parametrize(
        ("micro", "steps", "group", "ways"),
        [
            # trl takes the first two with 2 ranks, and lets a group span them.
            (4, 3, 8, ["num_generations=6", "train_batch_size=8", "steps_per_generation=4"]),
            (4, 1, 8, ["num_generations=4", "train_batch_size=8", "steps_per_generation=2"]),
            (1, 1, 4, ["per_device_train_batch_size=4", "steps_per_generation=4"]),
            (5, 2, 4, ["num_generations=5", "train_batch_size=6", "steps_per_generation=4"]),
        ],
    )
    def test_a_group_is_never_split(self, micro, steps, group, ways):
        with pytest.raises(ConfigError) as caught:
            arithmetic(micro, steps, group)
        assert caught.value.field == "num_generations"
        assert [way for way in ways if way not in caught.value.expected] == []

    @pytest.mark.parametrize(
        ("steps", "iterations", "accumulation", "fits"),
        [
            (4, 1, 4, True),
            (4, 1, 2, True),
            (4, 1, 8, True),
            (4, 2, 8, True),
            (4, 2, 4, True),
            (4, 1, 3, False),
            (4, 1, 6, False),
            (2, 3, 4, False),
        ],
    )
    def test_global_steps_end_with_generation_batches(self, steps, iterations, accumulation, fits):
        if fits:
            assert arithmetic(4, steps, 4, accumulation=accumulation, iterations=iterations)
            return
        with pytest.raises(ConfigError, match=f"use {steps * iterations}") as caught:
            arithmetic(4, steps, 4, accumulation=accumulation, iterations=iterations)
        assert caught.value.field == "gradient_accumulation_steps"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("world_size", 0),
            ("per_device_train_batch_size", 0),
            ("steps_per_generation", -1),
            ("gradient_accumulation_steps", 0),
            ("num_generations", 1),
            ("num_iterations", 0),
            ("steps_per_generation", 1.5),
            ("num_iterations", True),
        ],
    )
    def test_refuses_what_is_no_count(self, name, value):
        good: dict[str, Any] = {
            "world_size": 1,
            "per_device_train_batch_size": 2,
            "steps_per_generation": 1,
            "gradient_accumulation_steps": 1,
            "num_generations": 2,
            "num_iterations": 1,
        }
        with pytest.raises(ConfigError) as caught:
            check_batch_arithmetic(**{**good, name: value})
        assert caught.value.field == name

    @given(
        micro=st.integers(1, 40),
        steps=st.integers(1, 40),
        group=st.integers(2, 40),
        world=st.integers(1, 64),
    )
    def test_whatever_is_suggested_works(self, micro, steps, group, world):
        try:
            prompts = arithmetic(micro, steps, group, world=world)
        except ConfigError as error:
            ways = error.expected.rpartition("; use ")[2].split(" or ")
            assert ways
            for way in ways:
                name, value = way.split("=")
                used = {"per_device_train_batch_size": micro, "steps_per_generation": steps}
                used |= {"num_generations": group, name: int(value)}
                assert arithmetic(*used.values(), world=world) >= world
        else:
            assert prompts * group == world * micro * steps
            assert prompts % world == 0
