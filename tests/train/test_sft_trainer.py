import json

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from grpo_stream.errors import BadStepsError, ConfigError, RecordError
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.image_groups import ImageGroupSource, open_image_group
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import decode_sample
from grpo_stream.train import sft_trainer
from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.sft_trainer import StreamingSFTTrainer
from grpo_stream.train.supervised.supervised_arguments import SupervisedArguments
from grpo_stream.train.supervised.supervised_scores import ACCURACY, StopAtAccuracy, without_repeats
from shard_builder.build.build import BuildSettings, build
from tests.train.overrides import check_provenance, overrides_in
from tests.train.runs import SAVING, StopAfter, logged, place_of, weights_of
from tests.train.support import QUIET, TASK_TEXTS, load_model

OVERRIDES = overrides_in(StreamingSFTTrainer, SFTTrainer)


@pytest.mark.parametrize("method", OVERRIDES, ids=lambda method: method.__name__)
def test_an_override_names_what_it_overrides(method):
    assert not check_provenance(method, SFTTrainer)


def test_variables_of_the_chat_template_reach_rows_and_task(make_sft, tmp_path):
    trainer = make_sft(task={"chat_template_kwargs": '{"greeting": "Good morning. "}'})
    assert trainer.data_collator.prompts.chat_template_kwargs == {"greeting": "Good morning. "}
    trainer.save_model(str(tmp_path / "model"))
    task = json.loads((tmp_path / "model/task.json").read_text())
    assert task["chat_template_kwargs"] == {"greeting": "Good morning. "}


@pytest.fixture
def make_sft_args(tmp_path):
    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "out"),
            **QUIET,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "per_device_eval_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-3,
        }
        return SFTConfig(**(settings | changes))

    return make


@pytest.fixture
def make_sft(tiny_folder, processor, shapes, make_sft_args):
    made = []

    def stream(num_lanes, source=None, open_sample=decode_sample):
        config = StreamConfig(num_lanes=num_lanes, num_reader_threads=1)
        source = source or ShardSource(str(shapes.shards))
        return PromptStream(source, config, open_sample=open_sample)

    def make(args=None, *, evaluates=False, model=None, num_lanes=4, images=None, **changes):
        task = SupervisedArguments(**changes.pop("task", {}))
        trainer = StreamingSFTTrainer(
            model or str(tiny_folder),
            args or make_sft_args(),
            stream(num_lanes) if images is None else stream(num_lanes, images, open_image_group),
            stream(4) if evaluates else None,
            processing_class=processor,
            task=task,
            **changes,
        )
        made.append(trainer)
        return trainer

    yield make
    for trainer in made:
        trainer.close()


def gradients_of(make_sft, args, **changes):
    """Loss and gradients of the first update."""
    found = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_, model, **__):
            found.update({n: p.grad.clone() for n, p in model.named_parameters()})

    trainer = make_sft(args, callbacks=[Keep()], **changes)
    trainer.train()
    return logged(trainer, "loss")[0], found


class TestTraining:
    def test_every_weight_moves_and_the_loss_falls(self, make_sft, make_sft_args):
        trainer = make_sft(make_sft_args(max_steps=8, learning_rate=3e-3))
        before = weights_of(trainer)
        trainer.train()
        unmoved = [n for n, p in weights_of(trainer).items() if torch.equal(p, before[n])]
        assert unmoved == []
        losses = logged(trainer, "loss")
        assert len(losses) == 8
        assert losses[-1] < losses[0]
        assert logged(trainer, "stream/num_bad_samples") == [0] * 8
        assert trainer.state.epoch == pytest.approx(8 / 3)  # 13 records, 3 global batches of 4

    def test_the_loss_is_the_mean_over_all_answer_tokens_of_the_global_batch(
        self, make_sft, make_sft_args, tiny_folder
    ):
        trainer = make_sft(make_sft_args(max_steps=1))
        collate, stream = trainer.data_collator, trainer.train_stream
        answers = collate(stream.read_batch(0, 0))["micro_batches"]
        total, num_tokens = 0.0, 0
        model = load_model(tiny_folder, is_prepared=False)
        for sample in stream.read_batch(0, 0):
            batch = collate.prompts([sample])
            text = collate.answers.of(sample) + "<|im_end|>"
            ids = collate.prompts.processor.tokenizer(text, return_tensors="pt")["input_ids"]
            row = torch.cat([batch["prompt_ids"][0][None], ids], dim=1)
            from grpo_stream.train.models.patches import image_inputs

            pixels, grid = image_inputs(batch, "cpu")
            types = torch.cat([batch["mm_token_type_ids"][0][None], torch.zeros_like(ids)], dim=1)
            inputs = {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": types}
            with torch.no_grad():
                logits = model(input_ids=row, **inputs).logits[0, -ids.size(1) - 1 : -1]
            total += torch.nn.functional.cross_entropy(logits, ids[0], reduction="sum").item()
            num_tokens += ids.size(1)
        assert sum(int((part["labels"] != -100).sum()) for part in answers) == num_tokens
        trainer.train()
        assert logged(trainer, "loss")[0] == pytest.approx(total / num_tokens, abs=1e-4)

    def test_packed_rows_teach_what_padded_rows_teach(self, make_sft, make_sft_args):
        args = {"max_steps": 1, "max_grad_norm": 0}
        packed = gradients_of(make_sft, make_sft_args(**args))
        padded = gradients_of(make_sft, make_sft_args(**args), task={"shared_prefix": "off"})
        assert packed[0] == pytest.approx(padded[0], abs=1e-5)
        for name, gradient in padded[1].items():
            assert (packed[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name

    def test_micro_batches_do_not_change_the_update(self, make_sft, make_sft_args):
        args = {"max_steps": 1, "max_grad_norm": 0}
        two = gradients_of(make_sft, make_sft_args(**args))
        one = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
        whole = gradients_of(make_sft, make_sft_args(**args, **one))
        for name, gradient in whole[1].items():
            assert (two[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name

    def test_the_tower_stays_as_it_is(self, make_sft, make_sft_args):
        trainer = make_sft(make_sft_args(max_steps=1), task={"freeze_vision_tower": True})
        before = weights_of(trainer)
        trainer.train()
        moved = {n for n, p in weights_of(trainer).items() if not torch.equal(p, before[n])}
        assert moved
        assert not [name for name in moved if "visual" in name]

    def test_a_loss_that_is_not_finite_is_not_learnt_from(self, make_sft, make_sft_args):
        trainer = make_sft(make_sft_args(max_steps=1), task={"max_bad_steps": 0})
        weight = trainer.model.lm_head.weight
        weight.data[0] = torch.nan
        before = weight.detach().clone()
        with pytest.raises(BadStepsError, match=r"global step 1: the loss of samples 0000"):
            trainer.train()
        torch.testing.assert_close(weight.detach(), before, rtol=0, atol=0, equal_nan=True)

    def test_lora_with_checkpointing(self, make_sft, make_sft_args):
        lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
        args = make_sft_args(max_steps=2, gradient_checkpointing=True)
        trainer = make_sft(args, peft_config=lora)
        before = weights_of(trainer)
        trainer.train()
        moved = {n for n, p in weights_of(trainer).items() if not torch.equal(p, before[n])}
        assert moved
        assert all("lora_" in name for name in moved)


def test_a_family_that_cannot_pack_gets_padded_rows(shapes, make_sft_args, tmp_path):
    folder = make_tiny_policy(tmp_path / "llava", TASK_TEXTS, family="llava")
    config = StreamConfig(num_lanes=4, num_reader_threads=0, resize=None)
    trainer = StreamingSFTTrainer(
        str(folder),
        make_sft_args(max_steps=2),
        PromptStream(ShardSource(str(shapes.shards)), config),
        task=SupervisedArguments(prompt_template="plain", answer_frame="original"),
    )
    assert not trainer.shared_prefix
    before = weights_of(trainer)
    trainer.train()
    trainer.close()
    assert logged(trainer, "loss")[1] < logged(trainer, "loss")[0]
    assert any(not torch.equal(p, before[n]) for n, p in weights_of(trainer).items())
    with pytest.raises(ConfigError, match="shared_prefix='on': cannot be"):
        StreamingSFTTrainer(
            str(folder),
            make_sft_args(max_steps=2),
            PromptStream(ShardSource(str(shapes.shards)), config),
            task=SupervisedArguments(shared_prefix="on", answer_frame="original"),
        )


class TestImageGroups:
    @pytest.fixture
    def images(self, tmp_path, shapes):
        """Shards of six images with three, two or one record each, image by image."""
        records = [
            record | {"prompt": f"{record['prompt']}{' now' * turn}"}
            for turn in range(3)
            for record in shapes.records[: 6 - 2 * turn]
        ]
        (tmp_path / "records.json").write_text(json.dumps(records))
        inputs, out = (str(tmp_path / "records.json"),), str(tmp_path / "grouped")
        build(BuildSettings(inputs, str(shapes.images), out, by_image=True))
        return ImageGroupSource(ShardSource(out))

    def test_an_epoch_of_images_teaches_every_record_once(
        self, make_sft, make_sft_args, images, tmp_path
    ):
        settings = SAVING | {"max_steps": -1, "num_train_epochs": 2, "logging_steps": 2}
        args = {"gradient_accumulation_steps": 1}
        whole = make_sft(
            make_sft_args(**settings, **args, output_dir=str(tmp_path / "whole")),
            images=images,
            num_lanes=2,
        )
        seen = []
        prepare = whole._prepare_inputs

        def spy(batch):
            seen.append((batch["sizes"], len(batch["pixel_values"])))
            return prepare(batch)

        whole._prepare_inputs = spy
        whole.train()
        assert whole.state.global_step == 6  # three batches of two images an epoch
        assert all(len(sizes) == num_images for sizes, num_images in seen)
        for epoch in (seen[:3], seen[3:]):
            assert sorted(size for sizes, _ in epoch for size in sizes) == [1, 1, 2, 2, 3, 3]

        again = make_sft(
            make_sft_args(**settings, **args), images=images, num_lanes=2, callbacks=[StopAfter(4)]
        )
        again.train()
        resumed = make_sft(make_sft_args(**settings, **args), images=images, num_lanes=2)
        resumed.train(resume_from_checkpoint=True)
        for name, weight in weights_of(whole).items():
            assert torch.equal(weights_of(resumed)[name], weight), name


class TestResume:
    def test_a_resumed_run_is_the_run_that_was_not_stopped(self, make_sft, make_sft_args, tmp_path):
        settings = SAVING | {"logging_steps": 3, "max_steps": 6}  # stopped between two logs
        whole = make_sft(make_sft_args(**settings, output_dir=str(tmp_path / "whole")))
        whole.train()
        stopped = make_sft(make_sft_args(**settings), callbacks=[StopAfter(2)])
        stopped.train()
        assert place_of(tmp_path / "out/checkpoint-2") == (0, 2)
        again = make_sft(make_sft_args(**settings))
        again.train(resume_from_checkpoint=True)
        assert place_of(tmp_path / "out/checkpoint-3") == (1, 0)  # exactly at an epoch's end
        assert again.state.global_step == 6
        for name, weight in weights_of(whole).items():
            assert torch.equal(weights_of(again)[name], weight), name
        for name in ("loss", "num_tokens", "entropy", "grad_norm"):
            assert logged(again, name) == logged(whole, name)


class TestEvaluation:
    def test_all_records_count_once(self, make_sft, make_sft_args, shapes):
        """13 records in batches of 4: the last batch has one."""
        trainer = make_sft(
            make_sft_args(eval_strategy="steps", eval_steps=1),
            evaluates=True,
            task={"stop_accuracy": 0.9, "max_completion_length": 4},
        )
        metrics = trainer.evaluate()
        config = StreamConfig(num_lanes=13, num_reader_threads=0)
        samples = PromptStream(ShardSource(str(shapes.shards)), config).read_batch(0, 0)
        log_probs = []
        for part in trainer.data_collator(samples)["micro_batches"]:
            with torch.no_grad():
                output = trainer.model(**trainer._prepare_inputs(part), fused_lm_head=True)
            log_probs.append(output.log_probs[output.label_mask])
        assert metrics["eval_loss"] == pytest.approx(-torch.cat(log_probs).mean().item(), abs=1e-5)
        assert metrics[ACCURACY] == 0  # it has learnt nothing yet

    def test_records_that_a_batch_holds_twice_are_not_scored(self, make_sft):
        trainer = make_sft()
        batch = trainer.data_collator(trainer.train_stream.read_batch(0, 0))
        batch["num_prompts"] = 7  # on two ranks of four
        first, second = (
            [
                [bool((row != -100).any()) for row in part["tail_labels"]]
                for part in without_repeats(batch, rank)
            ]
            for rank in range(2)
        )
        assert first == [[True, True], [True, True]]
        assert second == [[True, True], [True, False]]

    def test_a_run_ends_once_it_is_good(self, make_sft, make_sft_args, monkeypatch):
        accuracies = iter([0.1, 0.3, 0.4, 0.9])
        monkeypatch.setattr(sft_trainer, "share_of_hits", lambda *_: next(accuracies))
        trainer = make_sft(
            make_sft_args(eval_strategy="steps", eval_steps=3, max_steps=12),
            evaluates=True,
            task={"stop_accuracy": 0.4},
            callbacks=[StopAtAccuracy(0.4)],
        )
        trainer.train()
        looks = [(e["step"], e[ACCURACY]) for e in trainer.state.log_history if ACCURACY in e]
        assert looks == [(3, 0.1), (6, 0.3), (7, 0.4)]  # more often once it is close
        assert trainer.state.global_step == 7


class TestSettings:
    @pytest.mark.parametrize(
        ("args", "changes", "field"),
        [
            ({"packing": True}, {}, "packing"),
            ({"max_length": 64}, {}, "max_length"),
            ({"dataloader_num_workers": 2}, {}, "dataloader_num_workers"),
            ({"eval_strategy": "steps", "eval_steps": 1}, {}, "eval_strategy"),
            ({}, {"num_lanes": 2}, "num_lanes"),
            ({}, {"task": {"prompt_template": "point_thinking"}}, "prompt_template"),
            ({}, {"task": {"stop_accuracy": 0.5}}, "stop_accuracy"),
            ({}, {"task": {"snap": 0}}, "snap"),
        ],
    )
    def test_refused(self, make_sft, make_sft_args, args, changes, field):
        with pytest.raises(ConfigError) as info:
            make_sft(make_sft_args(**args), **changes)
        assert info.value.field == field

    def test_a_record_without_its_answer_is_named(self, make_sft):
        trainer = make_sft(task={"answer_key": "thoughts"})
        with pytest.raises(RecordError, match=r"000\d\d\d: no text under answer_key='thoughts'"):
            trainer.train()
