import json
from pathlib import Path

import pytest
import torch
import transformers
from trl import GRPOTrainer

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.streaming_trainer import StreamingTrainer
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.overrides import check_provenance, overrides_in
from tests.train.runs import logged, spread_reward, weights_of

OVERRIDES = overrides_in(PersonalizedGRPOTrainer, GRPOTrainer)


class TestOverrides:
    """The trainer's file is the list of what is overridden, so what it says must be so."""

    @pytest.mark.parametrize("method", OVERRIDES, ids=lambda method: method.__name__)
    def test_names_what_it_overrides(self, method):
        assert not check_provenance(method, GRPOTrainer)

    def test_adds_few_names(self, make_trainer):
        """Other parts of a run must not have to know more of it."""
        theirs = set(vars(GRPOTrainer)) | set(vars(transformers.Trainer))
        classes = (PersonalizedGRPOTrainer, StreamingTrainer)
        own = {name for cls in classes for name in vars(cls) if not name.startswith("__")}
        trainer = make_trainer()
        assert own - theirs - {"close"} == {
            "_ban_tokens", "_check_inputs", "_has_packed_groups", "_prepare_model",
            "_prompt_collator", "_restore_gathered", "_restore_sums_of_trl", "_step",
            "_sums_of_trl", "_use_parts", "_ways_to_try", "prefix_way", "ref_model",
            "shared_prefix",
        }  # fmt: skip
        parts = {n for n, value in vars(trainer).items() if is_ours(value) and n.startswith("_")}
        assert parts == {"_feed", "_rollout", "_run_state", "_observer"}


def is_ours(value):
    return type(value).__module__.startswith("grpo_stream.")


class TestTraining:
    def test_every_weight_moves(self, make_trainer):
        trainer = make_trainer()
        before = weights_of(trainer)
        trainer.train()
        unmoved = [n for n, p in weights_of(trainer).items() if torch.equal(p, before[n])]
        assert unmoved == []
        assert len(logged(trainer, "loss")) == 2
        assert all(std > 0 for std in logged(trainer, "reward_std"))
        assert logged(trainer, "frac_reward_zero_std") == [0, 0]
        assert logged(trainer, "stream/num_bad_samples") == [0, 0]
        assert all(seconds >= 0 for seconds in logged(trainer, "stream/wait_seconds"))

    def test_rewards_by_name_and_weight(self, make_trainer, make_args):
        args = make_args(max_steps=1, reward_weights=[1.0, 0.5])
        trainer = make_trainer(args, reward_funcs=["accuracy_reward_coord", spread_reward])
        trainer.train()
        assert logged(trainer, "rewards/spread_reward/mean") == [1.5]
        assert len(logged(trainer, "rewards/accuracy_reward_coord/mean")) == 1
        assert logged(trainer, "reward")[0] >= 0.75

    def test_gradient_checkpointing(self, make_trainer, make_args):
        trainer = make_trainer(make_args(gradient_checkpointing=True, max_steps=1))
        before = weights_of(trainer)
        trainer.train()
        assert all(not torch.equal(p, before[n]) for n, p in weights_of(trainer).items())


class TestSettings:
    @pytest.mark.parametrize(
        ("args", "changes", "field"),
        [
            ({"use_vllm": True}, {}, "use_vllm"),
            ({"ignore_data_skip": True}, {}, "ignore_data_skip"),
            ({}, {"num_lanes": 2}, "num_lanes"),
            ({}, {"reward_funcs": "no_such_reward"}, "reward_funcs"),
            ({}, {"reward_funcs": ["format_reward", "json:nothing"]}, "reward_funcs"),
            ({}, {"prompt_template": "no_such"}, "prompt_template"),
            ({}, {"answer_frame": "inches"}, "answer_frame"),
            ({}, {"shared_prefix": "maybe"}, "shared_prefix"),
            ({"gradient_accumulation_steps": 3}, {}, "gradient_accumulation_steps"),
        ],
    )
    def test_refused(self, make_trainer, make_args, args, changes, field):
        with pytest.raises(ConfigError) as info:
            make_trainer(make_args(**args), **changes)
        assert info.value.field == field

    def test_data_are_needed(self, tiny_folder, make_args):
        with pytest.raises(ConfigError, match="train_dataset"):
            PersonalizedGRPOTrainer(str(tiny_folder), spread_reward, make_args())

    def test_no_such_model(self, make_args, shapes, tmp_path):
        with pytest.raises(ConfigError, match="model_name_or_path"):
            PersonalizedGRPOTrainer(
                str(tmp_path / "nowhere"),
                spread_reward,
                make_args(),
                shapes.records,
                images_root=shapes.images,
            )

    def test_a_model_instead_of_its_name(self, model, make_args, shapes, processor):
        trainer = PersonalizedGRPOTrainer(
            model,
            "format_reward",
            make_args(max_steps=1),
            shapes.records,
            images_root=shapes.images,
        )
        trainer.train()
        trainer.close()
        assert trainer.state.global_step == 1

    def test_a_saved_model_is_the_real_architecture(self, make_trainer, make_args, tmp_path):
        trainer = make_trainer(make_args(max_steps=1))
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        config = json.loads((Path(tmp_path) / "saved" / "config.json").read_text())
        assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
        assert load_processor(tmp_path / "saved").image_processor.patch_size == 14
