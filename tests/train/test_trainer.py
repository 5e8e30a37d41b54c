import json
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.images import ResizeRule, decode
from grpo_stream.stream import sources
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.feed import QUARANTINE_NAME
from grpo_stream.train.models import patches as patches_module
from grpo_stream.train.models.patches import image_inputs, to_patches
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.runs import (
    NUM_LANES,
    SAVING,
    KeySpy,
    logged,
    place_of,
    run,
    spread_reward,
    weights_of,
)
from tests.train.support import write_shapes


def force_completions(trainer, tokenizer):
    """Gives the same ragged completions whichever way they would have been sampled."""
    table = [tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
             for text in ("(8, 16)", "(100, 3)", "no", "", "(1, 2)", "Click on", "5")]  # fmt: skip
    trainer._generate_single_turn = lambda ids, *_, **__: (
        [table[row % len(table)] for row in range(len(ids))],
        None,
    )


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

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"beta": 0.1},
            {"num_iterations": 2, "max_steps": 4},
            {"steps_per_generation": 4, "per_device_train_batch_size": 2, "num_generations": 4,
             "gradient_accumulation_steps": 4},
            {"loss_type": "grpo", "top_entropy_quantile": 0.5},
        ],
        ids=["plain", "reference model", "old log-probs", "cut groups", "entropy mask"],
    )  # fmt: skip
    def test_shared_prefix_changes_nothing_but_the_work(
        self, make_trainer, make_args, processor, changes
    ):
        num_lanes = 2 if "per_device_train_batch_size" in changes else NUM_LANES
        args = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, **changes}
        runs = []
        for shared_prefix in ("on", "off"):
            trainer = make_trainer(
                make_args(**args), shared_prefix=shared_prefix, num_lanes=num_lanes
            )
            assert trainer.shared_prefix is (shared_prefix == "on")
            force_completions(trainer, processor.tokenizer)
            trainer.train()
            runs.append((trainer, weights_of(trainer)))
        (on, weights), (off, expected) = runs
        for name in ("loss", "entropy", "reward", *(["kl"] if "beta" in changes else [])):
            assert logged(on, name) == pytest.approx(logged(off, name), abs=1e-5), name
        initial = weights_of(make_trainer(make_args(**args), num_lanes=num_lanes))
        for name, weight in weights.items():
            moved = (expected[name] - initial[name]).norm()
            assert moved > 0, name
            assert (weight - expected[name]).norm() < 1e-3 * moved + 1e-6, name

    # 112x112 are 64 patches. Per generation batch of 2 prompts: once for sampling, once for the old
    # log-probabilities, and a forward for each of 4 micro-steps, 1 prompt each; frozen: once.
    @pytest.mark.parametrize(("frozen", "passes"), [(False, 2 + 2 + 4), (True, 2)])
    def test_each_record_is_worked_on_once(
        self, make_trainer, make_args, processor, tmp_path, monkeypatch, frozen, passes
    ):
        write_shapes(tmp_path, 5)  # one is the reserve
        decoded: Counter[bytes] = Counter()
        monkeypatch.setattr(
            sources, "decode", lambda data, *args: decoded.update([data]) or decode(data, *args)
        )
        args = make_args(
            per_device_train_batch_size=8,
            num_generations=8,
            num_iterations=2,
            max_steps=-1,
            num_train_epochs=1,
            beta=0.0,
        )
        trainer = make_trainer(
            args, num_lanes=2, folder=tmp_path / "shards", freeze_vision_tower=frozen
        )
        images: list[int] = []
        positions: list[int] = []

        def noting(lengths, function):
            def noted(first, *args, **kwargs):
                lengths.append(len(first))
                return function(first, *args, **kwargs)

            return noted

        monkeypatch.setattr(patches_module, "to_patches", noting(images, to_patches))
        backbone = trainer.model.model
        monkeypatch.setattr(backbone, "get_rope_index", noting(positions, backbone.get_rope_index))
        patches = []
        trainer.model.model.visual.register_forward_pre_hook(
            lambda _module, args, kwargs: patches.append(
                (args or tuple(kwargs.values()))[0].size(0)
            ),
            with_kwargs=True,
        )
        trainer.train()
        assert trainer.state.global_step == 4  # 2 generation batches x 4 micro-steps / 2
        assert len(decoded) == 4
        assert set(decoded.values()) == {1}
        assert images == [2, 2]
        assert positions == [1, 1] * 2
        assert sum(patches) == 2 * 64 * passes

    def test_a_bad_sample_does_not_stop_it(self, make_trainer, make_args, shapes):
        records = [*shapes.records[:4]]
        records[1] = records[1] | {"image": "missing.png"}
        spy = KeySpy()
        # No reserve and one batch: the stand-in is a prompt that the batch already holds.
        trainer = make_trainer(
            make_args(max_steps=1),
            reward_funcs=spy,
            train_dataset=records,
            images_root=shapes.images,
        )
        trainer.train()
        assert logged(trainer, "stream/num_bad_samples") == [1]
        assert logged(trainer, "stream/bad/image_not_found") == [1]
        assert len(spy.batches[0]) == 3

    def test_bad_samples_are_listed_in_the_checkpoint(
        self, make_trainer, make_args, shapes, tmp_path
    ):
        records = [*shapes.records[:4]]
        records[1] = records[1] | {"image": "missing.png"}
        args = make_args(max_steps=1, save_strategy="steps", save_steps=1)
        make_trainer(args, train_dataset=records, images_root=shapes.images).train()
        found = json.loads((tmp_path / "out" / "checkpoint-1" / QUARANTINE_NAME).read_text())
        samples = {"record 1": "image_not_found"}
        assert found == {"num_bad_by_cause": {"image_not_found": 1}, "samples": samples}

    def test_reads_ahead_across_epochs_but_not_past_the_end(self, make_trainer, make_args):
        trainer = make_trainer(make_args(max_steps=4))
        read: list[tuple[int, int]] = []
        slot_places = trainer.train_stream.slot_places

        def noted(*place):
            read.append(place)
            return slot_places(*place)

        trainer.train_stream.slot_places = noted
        trainer.train()
        assert read == [(0, 0), (0, 1), (0, 2), (1, 0)]
        delivered = sum(logged(trainer, "stream/num_samples"))
        assert delivered == trainer.train_stream.counters.num_samples == 16

    def test_an_epoch_needs_no_max_steps_and_the_next_has_another_order(
        self, make_trainer, make_args
    ):
        spy = KeySpy()
        trainer = make_trainer(make_args(max_steps=-1, num_train_epochs=2), reward_funcs=spy)
        trainer.train()
        assert trainer.state.global_step == 6  # 13 shapes are 3 generation batches of 4
        stream = trainer.train_stream
        assert spy.batches == [
            [sample.key for sample in stream.read_batch(epoch, batch)]
            for epoch in range(2)
            for batch in range(3)
        ]
        assert trainer.num_examples(trainer.get_train_dataloader()) == 12

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


class TestRewardColumns:
    def test_what_a_reward_receives(self, make_trainer, make_args, shapes):
        received = {}

        def spy(completions, **columns):
            received.update(columns)
            return spread_reward(completions)

        make_trainer(make_args(max_steps=1), reward_funcs=spy).train()
        assert {len(received[n]) for n in ("prompts", "key", "solution", "scales", "shape")} == {8}
        by_key = {f"{n:06d}": record for n, record in enumerate(shapes.records)}
        for row, key in enumerate(received["key"]):
            assert received["solution"][row] == by_key[key]["solution"]
            assert received["shape"][row] == by_key[key]["shape"]
            assert tuple(received["scales"][row]) == (112, 112)
            assert received["answer_frame"][row] == "model"
            assert by_key[key]["prompt"] in str(received["prompts"][row])
        assert received["key"][::2] == received["key"][1::2]


class TestRawRecords:
    def test_train_from_json_and_images_root(self, make_trainer, make_args, shapes):
        spy = KeySpy()
        trainer = make_trainer(
            make_args(),
            reward_funcs=spy,
            train_dataset=json.loads(json.dumps(shapes.records)),
            images_root=shapes.images,
        )
        trainer.train()
        keys = [key for batch in spy.batches for key in batch]
        assert len(keys) == len(set(keys)) == 8
        assert all(key.split("_")[1] == key.split("_")[0][3:] for key in keys)  # "000000003_000003"

    def test_another_image_processor_decides_the_size(
        self, make_trainer, make_args, shapes, tiny_folder
    ):
        image_processor = load_processor(tiny_folder, max_pixels=56 * 56).image_processor
        sizes = []

        def spy(completions, model_size, **_):
            sizes.extend(model_size)
            return spread_reward(completions)

        make_trainer(
            make_args(max_steps=1),
            reward_funcs=spy,
            train_dataset=shapes.records,
            images_root=shapes.images,
            image_processor=image_processor,
        ).train()
        assert {tuple(size) for size in sizes} == {(56, 56)}

    def test_images_root_is_needed(self, make_trainer, shapes):
        with pytest.raises(ConfigError, match="images_root"):
            make_trainer(train_dataset=shapes.records)

    @pytest.mark.parametrize("makes_patches", [False, True], ids=["images", "patches"])
    def test_another_collator_is_used(self, make_trainer, make_args, processor, makes_patches):
        seen = []
        collator = PromptCollator(processor, make_trainer().data_collator.template, "model")

        def collate(samples):
            seen.append(len(samples))
            batch = collator(samples)
            if makes_patches:
                batch["pixel_values"] = image_inputs(batch, "cpu")[0]
                del batch["patch_rule"]
            return batch

        make_trainer(make_args(max_steps=1), data_collator=collate).train()
        assert set(seen) == {4}


class TestOtherLanes:
    """13 shapes: epochs of 3 generation batches of 4 prompts, or of 6 of 2 prompts."""

    @pytest.fixture
    def begun(self, make_trainer, make_args, tmp_path):
        _, batches = run(make_trainer, make_args(**SAVING), stop_after=1)
        return str(tmp_path / "out" / "checkpoint-1"), batches

    @pytest.fixture
    def go_on(self, make_trainer, make_args):
        def go_on(resume_from, stop_after=None, **changes):
            length = {"max_steps": -1, "num_train_epochs": 2}
            args = make_args(**SAVING | length | changes, num_generations=4)
            return run(
                make_trainer,
                args,
                num_lanes=2,
                allow_new_lanes=True,
                resume_from=resume_from,
                stop_after=stop_after,
            )

        return go_on

    def test_are_refused_unless_allowed(self, make_trainer, make_args, begun):
        args = make_args(**SAVING, num_generations=4)
        with pytest.raises(CursorError, match=r"4 prompts per generation batch.*allow_new_lanes"):
            run(make_trainer, args, num_lanes=2, resume_from=begun[0])

    def test_read_exactly_what_is_left(self, begun, go_on, tmp_path):
        checkpoint, first = begun
        trainer, rest = go_on(checkpoint)
        # 9 of 13 are left: 4 generation batches of 2; then an epoch of 6.
        assert trainer.state.global_step == 1 + 4 + 6
        assert [len(batch) for batch in rest] == [2] * 10
        keys = [key for batch in [*first, *rest[:4]] for key in batch]
        assert len(keys) == len(set(keys)) == 12
        assert len({key for batch in rest[4:] for key in batch}) == 12
        assert trainer.state.epoch == 2
        assert trainer.train_loader.until == (1, 6)
        assert place_of(tmp_path / "out" / "checkpoint-5") == (1, 0)

    @pytest.mark.parametrize("stop_after", [3, 7], ids=["in the segment", "in the next epoch"])
    def test_go_on_again_without_being_allowed_again(
        self, make_trainer, make_args, begun, go_on, tmp_path, stop_after
    ):
        _, expected = go_on(begun[0])
        go_on(begun[0], stop_after=stop_after)
        args = make_args(**SAVING | {"max_steps": -1, "num_train_epochs": 2}, num_generations=4)
        checkpoint = str(tmp_path / "out" / f"checkpoint-{stop_after}")
        trainer, rest = run(make_trainer, args, num_lanes=2, resume_from=checkpoint)
        assert rest == expected[stop_after - 1 :]
        assert trainer.state.global_step == 11

    def test_max_steps_counts_all_global_steps(self, begun, go_on):
        trainer, rest = go_on(begun[0], max_steps=7)
        assert trainer.state.global_step == 7
        assert len(rest) == 6
        assert trainer.train_loader.until == (1, 2)


class TestEvaluation:
    def test_while_training(self, make_trainer, make_args, shapes):
        spy = KeySpy()
        args = make_args(max_steps=2, eval_strategy="steps", eval_steps=1,
                         per_device_eval_batch_size=4)  # fmt: skip
        trainer = make_trainer(
            args, reward_funcs=spy, eval_dataset=shapes.records, images_root=shapes.images
        )
        trainer.train()
        # Of 13 records 12 come in batches of 2 prompts, which earn 0 to 3; the last earns 0 and 1.
        assert logged(trainer, "eval_reward") == pytest.approx([(12 * 1.5 + 0.5) / 13] * 2)
        per_evaluation = [batch for batch in spy.batches if len(batch) == 2]
        assert len(per_evaluation) == 12
        assert per_evaluation[:6] == per_evaluation[6:]

    def test_without_data(self, make_trainer):
        with pytest.raises(ConfigError, match="eval_dataset"):
            make_trainer().get_eval_dataloader()


class TestSettings:
    def test_vision_tokens_are_never_sampled(self, make_trainer, processor):
        trainer = make_trainer()
        suppressed = processor.tokenizer.convert_ids_to_tokens(
            trainer.generation_config.suppress_tokens
        )
        assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>"} <= set(suppressed)
        assert trainer.generation_kwargs["suppress_tokens"]

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

    def test_another_rank_of_the_stream_is_refused(self, make_trainer, shapes):
        source = ShardSource(str(shapes.shards))
        stream = PromptStream(source, StreamConfig(num_lanes=NUM_LANES), World(1, 2))
        with pytest.raises(ConfigError, match="world="):
            make_trainer(train_dataset=stream)

    @pytest.mark.parametrize("rule", [None, ResizeRule(multiple=32)])
    def test_a_stream_of_other_sizes_is_refused(self, make_trainer, make_args, shapes, rule):
        config = StreamConfig(num_lanes=NUM_LANES, resize=rule)
        stream = PromptStream(ShardSource(str(shapes.shards)), config)
        with pytest.raises(ConfigError, match=r"resize=.*multiples of 28"):
            make_trainer(train_dataset=stream)
        make_trainer(train_dataset=stream, data_collator=list)  # may take images of any size

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

    def test_shared_prefix_falls_back_with_the_reason(self, make_trainer, monkeypatch):
        from grpo_stream.train import trainer as module

        monkeypatch.setattr(module, "shared_prefix_obstacle", lambda _: "it is Tuesday")
        assert make_trainer().shared_prefix is False
        with pytest.raises(ConfigError, match="it is Tuesday"):
            make_trainer(shared_prefix="on")

    def test_threads_end(self, make_trainer, make_args):
        before = set(threading.enumerate())
        trainer = make_trainer(make_args(max_steps=1))
        trainer.train()
        trainer.close()
        left = set(threading.enumerate()) - before
        assert not [t.name for t in left if t.name.startswith(("decoder", "assembler"))]

    def test_a_saved_model_is_the_real_architecture(self, make_trainer, make_args, tmp_path):
        trainer = make_trainer(make_args(max_steps=1))
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        config = json.loads((Path(tmp_path) / "saved" / "config.json").read_text())
        assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
        assert load_processor(tmp_path / "saved").image_processor.patch_size == 14
