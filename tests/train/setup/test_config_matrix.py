"""What GRPOConfig offers: short real trainings, with the shared prefix and without it.

Both ways are given the same completions and must come to the same losses and weights.
"""

import copy
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLMoeConfig, TrainingArguments
from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.setup.settings_checks import check_balancing_loss, check_supported
from grpo_stream.train.setup.unsupported_settings import REFUSED
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.runs import logged, spread_reward, weights_of
from tests.train.support import QUIET

ROOT = Path(__file__).resolve().parents[3]
UPDATES = {"num_iterations": 2}
"""The second global step then trains on completions of an older policy."""

LOSSES: dict[str, dict[str, Any]] = {
    **{loss: {"loss_type": loss} for loss in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo")},
    "vespo": {"loss_type": "vespo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "GSPO": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "two-sided clip": {"delta": 1.0001, "epsilon": 1e-4, "epsilon_high": 2e-4},
    "sapo temperatures": {
        "loss_type": "sapo", "sapo_temperature_pos": 0.5, "sapo_temperature_neg": 2.0
    },
    "vespo weights": {
        "loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 1.0, "vespo_k_neg": 1.0,
        "vespo_lambda_neg": 1.0,
    },
    "off-policy mask": {"off_policy_mask_threshold": 1e-6},
}  # fmt: skip

OPTIONS: dict[str, dict[str, Any]] = {
    "reference model": {"beta": 0.1},
    "reference model, unbiased": {"beta": 0.1, "use_bias_correction_kl": True},
    "moving reference model": {
        "beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5
    },
    "advantages by batch": {"scale_rewards": "batch"},
    "advantages as they are": {"scale_rewards": "none"},
    "weights": {"reward_weights": [1.0, 0.25]},
    "normalized rewards": {"multi_objective_aggregation": "normalize_then_sum"},
    "truncated are masked": {"mask_truncated_completions": True},
    "tokens of high entropy": {"top_entropy_quantile": 0.3},
    "entropy bonus": {"entropy_coef": 0.1},
    "adaptive entropy": {
        "use_adaptive_entropy": True, "entropy_target": 100.0, "entropy_coef_delta": 0.1,
        "entropy_coef_min": 0.0, "entropy_coef_max": 0.15,
    },
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant checkpointing": {
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}
    },
    "float32 head": {"cast_lm_head_to_fp32": True},
    "no dropout": {"disable_dropout": True},
    "padding": {"pad_to_multiple_of": 16},
    "temperature": {"temperature": 0.5},
    "generation batch": {"generation_batch_size": 4, "steps_per_generation": None},
    "one update a micro-batch": {"gradient_accumulation_steps": 1},
    "updates across iterations": {"gradient_accumulation_steps": 4},
}  # fmt: skip


def make_args(folder, **changes):
    settings: dict[str, Any] = {
        **QUIET,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "max_completion_length": 4,
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
    }
    return GRPOConfig(str(folder), **settings | changes)


@pytest.fixture
def make_trainer(tiny_folder, processor, shapes, tmp_path):
    made = []

    def make(args=None, rewards=None, **changes):
        trainer = PersonalizedGRPOTrainer(
            str(tiny_folder),
            rewards or [spread_reward, length],
            args or make_args(tmp_path),
            shapes.records,
            processing_class=processor,
            images_root=shapes.images,
            **changes,
        )
        made.append(trainer)
        return trainer

    yield make
    for trainer in made:
        trainer.close()


def length(completion_ids, **_):
    return [len(ids) / 10 for ids in completion_ids]


def give_completions(trainer, tokenizer):
    """The same ragged completions whichever way they would have been sampled."""
    texts = ("(8, 16)<|im_end|>", "(100, 3)", "no<|im_end|>", "<|im_end|>", "(1, 2)", "Click on")
    table = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    trainer._generate_single_turn = lambda ids, *_, **__: (
        [table[row % len(table)] for row in range(len(ids))],
        None,
    )


@pytest.fixture
def compare(make_trainer, processor, tmp_path):
    """Trains with the shared prefix and without; the trainers, once they are found to agree."""

    def compare(*, tolerance=1e-3, peft_config=None, **changes):
        runs = []
        for shared_prefix in ("on", "off"):
            torch.manual_seed(0)  # of adapters
            trainer = make_trainer(
                make_args(tmp_path, **changes),
                shared_prefix=shared_prefix,
                peft_config=copy.deepcopy(peft_config),
            )
            give_completions(trainer, processor.tokenizer)
            initial = weights_of(trainer)
            trainer.train()
            runs.append((trainer, weights_of(trainer)))
        (on, weights), (off, expected) = runs
        for name in ("loss", "entropy", "reward", "kl", "entropy_coef"):
            # The KL term is an exponential of log-probabilities, which agree to about 1e-5: how
            # much of that is used depends on the processor's kernels.
            rel = 1e-5 if name == "kl" else 2e-6
            expected_log = pytest.approx(logged(off, name), rel=rel, abs=tolerance / 100)
            assert logged(on, name) == expected_log, name
        total = sum((expected[name] - initial[name]).norm() for name in expected)
        apart = sum((expected[name] - weights[name]).norm() for name in expected)
        assert total > 0
        assert apart < tolerance * total
        return on

    return compare


@pytest.mark.parametrize("name", LOSSES)
def test_losses(compare, name):
    trainer = compare(**UPDATES, **LOSSES[name])
    assert len(logged(trainer, "loss")) == 2


@pytest.mark.parametrize("name", OPTIONS)
def test_options(compare, name):
    compare(**OPTIONS[name])


@pytest.mark.parametrize("changes", [{}, {"beta": 0.1, "gradient_checkpointing": True}])
def test_lora(compare, changes):
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = compare(**changes, peft_config=lora)
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == {
        n for n, _ in trainer.model.named_parameters() if "lora_" in n
    }
    assert trainer.ref_model is None


def test_lora_is_saved_as_an_adapter(make_trainer, tmp_path):
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    args = make_args(tmp_path / "out", max_steps=1)
    trainer = make_trainer(args, peft_config=lora)
    trainer.train()
    trainer.save_model()
    base = load_policy(trainer.model.peft_config["default"].base_model_name_or_path)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "out").state_dict()
    trained = {n: p for n, p in trainer.model.state_dict().items() if "lora_" in n}
    assert trained
    assert all(torch.equal(again[name], value) for name, value in trained.items())


def test_bfloat16(compare):
    trainer = compare(tolerance=0.1, bf16=True, max_steps=1)
    assert torch.isfinite(torch.tensor(logged(trainer, "loss"))).all()


def test_a_micro_batch_whose_completions_are_all_masked(make_trainer, tmp_path):
    trainer = make_trainer(make_args(tmp_path, mask_truncated_completions=True))
    trainer._generate_single_turn = lambda ids, *_, **__: ([[5, 6] for _ in ids], None)
    before = weights_of(trainer)
    trainer.train()
    assert logged(trainer, "loss") == [0, 0]
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(trainer).items())


@pytest.mark.parametrize("shared_prefix", ["on", "off"])
def test_sampling(make_trainer, tmp_path, processor, shared_prefix):
    tokens = processor.tokenizer.convert_tokens_to_ids(["(", "<|image_pad|>"])
    seen = []

    def spy(completion_ids, **_):
        seen.extend(completion_ids)
        return spread_reward(completion_ids)

    args = make_args(
        tmp_path,
        temperature=0.7,
        top_p=0.9,
        top_k=20,
        min_p=0.01,
        repetition_penalty=1.1,
        generation_kwargs={"min_new_tokens": 3, "suppress_tokens": tokens[:1]},
        max_steps=1,
    )
    trainer = make_trainer(args, [spy], shared_prefix=shared_prefix)
    assert set(tokens) < set(trainer.generation_config.suppress_tokens)
    trainer.train()
    assert {len(ids) for ids in seen} <= {3, 4}
    assert not {tokens[0]} & {token for ids in seen for token in ids}


def test_another_chat_template_and_its_variables(make_trainer, tmp_path, processor, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", "{{ greeting }}" + processor.chat_template)
    args = make_args(tmp_path, chat_template_kwargs={"greeting": "Good morning. "}, max_steps=1)
    trainer = make_trainer(args)
    trainer.train()
    (batch,) = [
        trainer.data_collator([sample]) for sample in trainer.train_stream.read_batch(0, 0)[:1]
    ]
    assert processor.tokenizer.decode(batch["prompt_ids"][0]).startswith("Good morning. ")


def test_completions_are_logged(make_trainer, tmp_path, capsys):
    args = make_args(
        tmp_path, log_completions=True, num_completions_to_print=1, log_unique_prompts=True,
        max_steps=1,
    )  # fmt: skip
    make_trainer(args, [spread_reward]).train()
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "completions" / "completions_00001.parquet")
    assert table["spread_reward"].to_pylist() == [0, 1, 2, 3]
    assert [prompt[0]["role"] for prompt in table["prompt"].to_pylist()] == ["user"] * 4
    assert "Click on" in capsys.readouterr().out


# ---------------------------------------------------------------- every field

BY_TRL = {
    "max_completion_length",
    "learning_rate",
    "remove_unused_columns",
    "model_init_kwargs",
    "trust_remote_code",
    "ds3_gather_for_generation",
    "num_generations",
    "num_generations_eval",
    "steps_per_generation",
    "top_p",
    "top_k",
    "min_p",
    "generation_kwargs",
    "chat_template_kwargs",
    "repetition_penalty",
    "num_iterations",
    "epsilon",
    "epsilon_high",
    "max_tool_calling_iterations",
    "log_completions",
    "log_completions_hub_repo",
    "log_multimodal",
    "num_completions_to_print",
    "log_unique_prompts",
    "router_aux_loss_coef",
}
"""Held by the tests above and beside, or nothing to do with data, rollout or scoring."""

DEPRECATED = {
    "use_transformers_paged": "use_transformers_continuous_batching",
    "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
}
IDLE = {"transformers_continuous_batching_config"}
"""Read only by what is refused."""


def test_every_field_of_trl_is_used_refused_or_known_to_be_left_alone():
    own = {f.name for f in fields(GRPOConfig)} - {f.name for f in fields(TrainingArguments)}
    tried = {name for changes in (LOSSES | OPTIONS).values() for name in changes}
    vllm = {name for name in own if name.startswith("vllm_") or name == "use_vllm"}
    known = tried | vllm | BY_TRL | {*REFUSED, *DEPRECATED, *IDLE}
    assert own - known == set(), (
        "new in trl: try them here, or refuse them (unsupported_settings.py)"
    )
    assert set(REFUSED) <= {f.name for f in fields(GRPOConfig)}


def test_transformers_settings_that_are_about_data_are_refused():
    names = {f.name for f in fields(TrainingArguments)}
    about_data = {name for name in names if name.startswith("dataloader_")}
    assert about_data - set(REFUSED) == {"dataloader_pin_memory"}  # use_cpu sets it


REFUSED_CASES = {
    "use_transformers_continuous_batching": True,
    "ignore_data_skip": True,
    "cache_implementation": "static",
    "use_liger_kernel": True,
    "fsdp": "full_shard",
    "shuffle_dataset": False,
    "data_seed": 3,
    "train_sampling_strategy": "group_by_length",
    "dataloader_num_workers": 2,
    "dataloader_prefetch_factor": 2,
    "dataloader_persistent_workers": True,
    "dataloader_multiprocessing_context": "spawn",
    "dataloader_in_order": False,
    "dataloader_drop_last": True,
}


@pytest.mark.parametrize("name", REFUSED_CASES)
def test_refused(tmp_path, name):
    args = make_args(tmp_path)
    setattr(args, name, REFUSED_CASES[name])
    with pytest.raises(ConfigError) as caught:
        check_supported(args)
    assert caught.value.field == name
    assert "; use " in caught.value.expected


def test_refused_cases_are_all_of_them():
    assert set(REFUSED_CASES) == set(REFUSED)


def test_what_stands_for_a_refused_setting_is_refused(tmp_path):
    with pytest.warns(FutureWarning, match="use_transformers_paged"):
        args = make_args(tmp_path, use_transformers_paged=True)
    with pytest.raises(ConfigError, match="use_transformers_continuous_batching=True"):
        check_supported(args)


@pytest.mark.parametrize("name", ["tools", "rollout_func", "environment_factory"])
def test_what_makes_prompts_of_its_own_is_refused(make_trainer, name):
    with pytest.raises(ConfigError, match=name):
        make_trainer(**{name: [print]})


def test_a_balancing_loss_is_for_experts(tmp_path):
    with_loss = make_args(tmp_path, router_aux_loss_coef=0.1)
    experts = Qwen3VLMoeConfig(text_config={"router_aux_loss_coef": 0.001})
    check_balancing_loss(experts, with_loss)
    check_balancing_loss(experts, make_args(tmp_path))
    check_balancing_loss(Qwen3VLConfig(), make_args(tmp_path))
    with pytest.raises(ConfigError, match=r"coef=0\.1: is for experts, and.*'qwen3_vl'.*use 0"):
        check_balancing_loss(Qwen3VLConfig(), with_loss)


class TestPage:
    """docs/training.md: what it names is there."""

    PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")

    def test_tests(self):
        named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", self.PAGE)
        assert len(named) > 20
        lost = [
            (path, name)
            for path, name in named
            if f"def {name}" not in (ROOT / path).read_text(encoding="utf-8")
        ]
        assert lost == []

    def test_refused_settings(self):
        table = self.PAGE.partition("Refused before")[2].partition("##")[0]
        assert [name for name in REFUSED if f"`{name}" not in table] == []

    def test_loss_types(self):
        losses = {changes.get("loss_type", "dapo") for changes in LOSSES.values()}
        assert [loss for loss in losses if not re.search(rf"[` ]{loss}`", self.PAGE)] == []
