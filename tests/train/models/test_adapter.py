"""Folders of LoRA adapters where a model's folder is asked for."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.policy import load_policy, policy_config
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.setup.run_plan import parse_settings, plan_run
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.launch.support import load_script
from tests.train.runs import spread_reward


@pytest.fixture(scope="module")
def adapter(tiny_folder, processor, tmp_path_factory):
    """As a run with LoRA leaves it: weights that are not those of a new adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_policy(tiny_folder), config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def lora_weights(model):
    return {
        name: weight.detach().clone()
        for name, weight in model.named_parameters()
        if ".lora_" in name and ".ref." not in name
    }


def test_is_merged_to_be_used(adapter, tiny_folder):
    weights = load_policy(adapter).state_dict()
    base = load_policy(tiny_folder).state_dict()
    assert weights.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], weights[name])}
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)


def test_configuration_and_processor(adapter, tiny_folder, tmp_path):
    assert policy_config(adapter).model_type == "qwen2_5_vl"
    assert load_processor(adapter).tokenizer.vocab == load_processor(tiny_folder).tokenizer.vocab
    for path in adapter.glob("adapter*"):
        shutil.copy(path, tmp_path)
    assert load_processor(tmp_path).tokenizer.vocab == load_processor(adapter).tokenizer.vocab


def test_is_evaluated(adapter, shapes, tmp_path):
    script = load_script("evaluate")
    exported = tmp_path / "merged"
    load_policy(adapter).save_pretrained(exported)
    load_processor(adapter).save_pretrained(exported)
    reports = []
    for name, model in (("adapter", adapter), ("merged", exported)):
        words = ["--model", str(model), "--shards", str(shapes.shards), "--device", "cpu"]
        words += ["--max_completion_length", "4", "--num-resamples", "100", "--num-pictures", "0"]
        assert script.main([*words, "--report", str(tmp_path / f"report-{name}")]) == 0
        reports.append((tmp_path / f"report-{name}/answers.jsonl").read_text())
    assert reports[0] == reports[1]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_is_trained_further(adapter, shapes, processor, make_args, tmp_path, beta):
    """Its own weights, not new ones; the reference is what they were at the start."""
    trainer = PersonalizedGRPOTrainer(
        str(adapter),
        spread_reward,
        make_args(max_steps=1, beta=beta, model_init_kwargs={"dtype": "float32"}),
        shapes.records,
        processing_class=processor,
        images_root=shapes.images,
    )
    try:
        before = lora_weights(trainer.model)
        saved = lora_weights(trainer.model.from_pretrained(load_policy_of(adapter), adapter))
        assert before.keys() == saved.keys()
        assert all(torch.equal(before[name], saved[name]) for name in saved)
        assert trainer.shared_prefix
        trainer.train()
        after = lora_weights(trainer.model)
        assert any(not torch.equal(before[name], after[name]) for name in before)
        if beta:
            (kl,) = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
            assert kl == pytest.approx(0, abs=1e-6)
        trainer.save_model(str(tmp_path / "further"))
    finally:
        trainer.close()
    further = load_policy(tmp_path / "further").state_dict()
    merged = load_policy(adapter).state_dict()
    assert any(not torch.equal(further[name], merged[name]) for name in merged)


def load_policy_of(adapter):
    return load_policy(json.loads((adapter / "adapter_config.json").read_text())[BASE])


BASE = "base_model_name_or_path"


class TestPlan:
    @pytest.fixture
    def flags(self, adapter, shapes, tmp_path):
        return [
            *("--model_name_or_path", str(adapter), "--shards", str(shapes.shards)),
            *("--output_dir", str(tmp_path), "--per_device_train_batch_size", "4"),
            *("--num_generations", "4", "--report_to", "none"),
        ]

    def test_is_planned_as_its_base(self, flags):
        plan = plan_run(parse_settings(flags, use_cpu=True))
        assert "auto: packed, attention two_part" in plan.describe()

    def test_another_adapter_on_it_is_refused(self, flags):
        settings = parse_settings([*flags, "--use_peft", "true"], use_cpu=True)
        with pytest.raises(ConfigError, match="use_peft=True: is for a new adapter"):
            plan_run(settings)


def test_a_base_that_has_gone_is_named(adapter, tmp_path):
    content = json.loads((adapter / "adapter_config.json").read_text())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(content | {BASE: "/no/such/base"}))
    message = f"{BASE}='/no/such/base': is the base of this adapter and does not exist.*{path}"
    with pytest.raises(ConfigError, match=message):
        policy_config(tmp_path)
