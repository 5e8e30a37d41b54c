import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.models.master_weights import MasterWeights, check_dtype
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.runs import SAVING, run, spread_reward, weights_of
from tests.train.support import QUIET

BF16 = {"bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}}
WORDS = (
    r"bfloat16'?: would train weights in 16 bits .*dtype=float32 with bf16=true"
    r".*deepspeed=ds_configs/zero3.json.*master_weights=float32"
)


def masters_of(trainer):
    """In the order of the model; the optimizer's groups have another one."""
    masters = {id(weight): master for weight, master in trainer.optimizer.optimizer._pairs}
    return [masters[id(weight)] for weight in trainer.model.parameters()]


def share_changed(before, now):
    changed = [(a.float() != b.float()).sum() for a, b in zip(before, now, strict=True)]
    return float(sum(changed)) / sum(weight.numel() for weight in now)


def test_small_updates_arrive(make_trainer, make_args, tiny_folder):
    """At the learning rate of GRPO: a weight of 16 bits stays where it was, one of 32 does not."""
    settings = {"learning_rate": 1e-6, "max_steps": 5, "lr_scheduler_type": "constant"}
    start = list(load_policy(tiny_folder, dtype=torch.bfloat16).parameters())
    shares = {}
    for name, changes, who in (
        ("nobody", BF16, "optimizer"),
        ("masters", BF16, "float32"),
        ("float32", {"bf16": True}, "none"),
    ):
        trainer, _ = run(make_trainer, make_args(**settings, **changes), master_weights=who)
        now = masters_of(trainer) if name == "masters" else list(trainer.model.parameters())
        exact = list(load_policy(tiny_folder, dtype=torch.float32).parameters())
        before = exact if name == "float32" else start
        shares[name] = share_changed(before, now)
    assert shares["nobody"] < 0.02
    assert shares["masters"] > 0.8
    assert shares["float32"] > 0.8


def test_weights_are_the_float32_ones_rounded(make_trainer, make_args):
    trainer, _ = run(make_trainer, make_args(**BF16), master_weights="float32")
    for weight, master in zip(trainer.model.parameters(), masters_of(trainer), strict=True):
        assert torch.equal(weight, master.bfloat16())


def test_a_resumed_run_is_the_same(make_trainer, make_args):
    args = SAVING | BF16
    whole, _ = run(
        make_trainer, make_args(**args | {"save_strategy": "no"}), master_weights="float32"
    )
    run(make_trainer, make_args(**args), stop_after=2, master_weights="float32")
    resumed, _ = run(make_trainer, make_args(**args), resume_from=True, master_weights="float32")
    for found, expected in zip(masters_of(resumed), masters_of(whole), strict=True):
        assert torch.equal(found, expected)
    weights = weights_of(whole)
    assert [n for n, w in weights_of(resumed).items() if not torch.equal(w, weights[n])] == []
    with pytest.raises(ConfigError, match=r"master_weights='optimizer': .* written with 'float32'"):
        run(make_trainer, make_args(**args), resume_from=True, master_weights="optimizer")


def test_it_steps_like_the_optimizer_inside():
    torch.manual_seed(0)
    exact = [torch.nn.Parameter(torch.randn(3, 4).bfloat16().float()) for _ in range(2)]
    rounded = [torch.nn.Parameter(weight.detach().bfloat16()) for weight in exact]
    plain = torch.optim.AdamW(exact, lr=1e-4)
    wrapped = MasterWeights(torch.optim.AdamW(rounded, lr=1e-4))
    for _ in range(3):
        for one, other in zip(exact, rounded, strict=True):
            other.grad = torch.randn(3, 4).bfloat16()
            one.grad = other.grad.float()
        plain.step()
        wrapped.step()
    assert all(torch.equal(a, b) for a, b in zip(exact, wrapped.masters, strict=True))
    again = MasterWeights(torch.optim.AdamW([w.detach().clone().requires_grad_() for w in rounded]))
    again.load_state_dict(wrapped.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(exact, again.masters, strict=True))
    with pytest.raises(CheckpointError, match="holds no float32 weights"):
        again.load_state_dict(plain.state_dict())
    with pytest.raises(ConfigError, match="has made no step"):
        MasterWeights(plain)


class TestRefused:
    def test_by_its_setting(self, make_trainer, make_args):
        with pytest.raises(ConfigError, match="dtype='" + WORDS):
            make_trainer(make_args(**BF16))

    def test_a_model_that_is_in_bfloat16(self, tiny_folder, make_args, shapes, processor):
        """As transformers 5 loads a checkpoint that is."""
        model = load_policy(tiny_folder, dtype=torch.bfloat16)
        rest = {"images_root": shapes.images, "processing_class": processor}
        with pytest.raises(ConfigError, match=WORDS):
            PersonalizedGRPOTrainer(model, spread_reward, make_args(), shapes.records, **rest)

    def test_only_what_is_trained_counts(self, tiny_folder, make_args, shapes, processor):
        model = load_policy(tiny_folder, dtype=torch.float32)
        model.model.visual.bfloat16()
        rest = {"images_root": shapes.images, "processing_class": processor}
        with pytest.raises(ConfigError, match=r"model \(model.visual"):
            PersonalizedGRPOTrainer(model, spread_reward, make_args(), shapes.records, **rest)
        model = load_policy(tiny_folder, dtype=torch.float32)
        model.model.visual.bfloat16()
        rest["freeze_vision_tower"] = True
        PersonalizedGRPOTrainer(model, spread_reward, make_args(), shapes.records, **rest).close()

    def test_adapters_are_float32(self, make_trainer, make_args):
        lora = LoraConfig(target_modules=["q_proj"], r=2)
        trainer, _ = run(make_trainer, make_args(**BF16), peft_config=lora)
        assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}

    @pytest.mark.parametrize(
        ("dtype", "settings", "who", "words"),
        [
            ("auto", {}, "none", "dtype='bfloat16'"),
            (torch.float16, {}, "none", "dtype='float16'"),
            ("float16", {}, "float32", "is for bfloat16"),
            ("bfloat16", {}, "other", "must be one of none, float32, optimizer"),
            ("bfloat16", {"deepspeed": {"zero_optimization": {"stage": 0}}}, "none", "16 bits"),
            (
                "float32",
                {"deepspeed": {"zero_optimization": {"stage": 2}}},
                "float32",
                "use 'none'",
            ),
        ],
    )
    def test_before_anything_is_loaded(self, tmp_path, dtype, settings, who, words):
        args = GRPOConfig(str(tmp_path), **QUIET)
        for name, value in settings.items():
            setattr(args, name, value)
        config = type("Config", (), {"dtype": torch.bfloat16})
        with pytest.raises(ConfigError, match=words):
            check_dtype(dtype, config, args, who)

    @pytest.mark.parametrize(
        ("dtype", "zero", "who"),
        [
            (None, None, "none"),
            ("float32", None, "none"),
            ("bfloat16", None, "optimizer"),
            ("bfloat16", {"zero_optimization": {"stage": 3}}, "none"),
            ("bfloat16", {"bf16": {"enabled": True}}, "none"),
        ],
    )
    def test_what_somebody_keeps_is_trained(self, tmp_path, dtype, zero, who):
        args = GRPOConfig(str(tmp_path), **QUIET)
        args.deepspeed = zero
        check_dtype(dtype, None, args, who)
