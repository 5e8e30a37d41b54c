"""Model families: each is trained by the real trainer and held to trl's own way of training it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from trl import GRPOConfig, GRPOTrainer

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.families import FAMILIES
from grpo_stream.train.models.processor import load_processor, resize_rule
from grpo_stream.train.models.processor_only import encode_by_processor
from grpo_stream.train.models.tiny import RECIPES, make_tiny_policy
from grpo_stream.train.prefix.backbone import encode_images
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.prefix.test_generation import generate, generate_alone, generation_config
from tests.train.prefix.test_packing import (
    LENGTHS,
    gradients,
    make_completions,
    score_one_by_one,
    score_together,
)
from tests.train.support import QUIET, TASK_TEXTS, load_model, make_groups, make_llava

FRAME_SIZES = {"qwen2_5_vl": "112x112", "qwen2_vl": "1000x1000", "qwen3_vl": "1000x1000"}


@pytest.mark.parametrize(
    ("model_type", "processor"),
    [(model_type, row.processor) for model_type, row in FAMILIES.items() if row.processor],
)
def test_a_row_is_as_transformers_has_it(model_type, processor):
    tower = AutoConfig.for_model(model_type).vision_config
    assert processor.name == PROCESSOR_MAPPING_NAMES[model_type]
    assert processor.resize_multiple == tower.patch_size * tower.spatial_merge_size


def test_what_is_packed_is_tested_here():
    assert {name for name, row in FAMILIES.items() if row.is_packed} == set(RECIPES)
    assert set(FRAME_SIZES) == set(RECIPES)


@pytest.fixture(scope="module", params=list(RECIPES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory, tiny_folder):
    if family == "qwen2_5_vl":
        return tiny_folder
    return make_tiny_policy(tmp_path_factory.mktemp(family), TASK_TEXTS, family=family)


def make_args(folder, **changes):
    settings = {
        **QUIET,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 4,
        "max_steps": 1,
        "beta": 0.1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
    }
    return GRPOConfig(str(folder), **settings | changes)


def spread(completions, **_):
    return [float(number % 3) for number in range(len(completions))]


def give_completions(trainer, tokenizer):
    table = tokenizer(["(8, 16)", "(100, 3)<|im_end|>", "no", "(1"], add_special_tokens=False)
    trainer._generate_single_turn = lambda ids, *_, **__: (table["input_ids"][: len(ids)], None)


def trained(trainer, tokenizer):
    """Loss, and every weight's change."""
    give_completions(trainer, tokenizer)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return loss, {name: p.detach() - before[name] for name, p in trainer.model.named_parameters()}


def assert_equal(found, expected, *, all_move=True):
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    total = sum(change.norm() for change in expected[1].values())
    assert total > 0
    assert sum((found[1][n] - change).norm() for n, change in expected[1].items()) < 1e-4 * total
    still = [name for name, change in expected[1].items() if not change.abs().max()]
    assert bool(still) is not all_move


def train_ours(folder, shapes, args, **changes):
    """What our trainer makes of a step, the samples that it read and what it asked."""
    processor = load_processor(folder)
    trainer = PersonalizedGRPOTrainer(
        str(folder),
        spread,
        args,
        shapes.records,
        processing_class=processor,
        images_root=shapes.images,
        **changes,
    )
    found = trained(trainer, processor.tokenizer)
    samples = trainer.train_stream.read_batch(0, 0)
    texts = [
        prompt[-1]["content"][-1]["text"] for prompt in trainer.data_collator(samples)["prompt"]
    ]
    trainer.close()
    return found, samples, texts


def train_theirs(folder, args, samples, texts):
    """What trl's own trainer makes of the same prompts."""
    prompts = [[{"role": "user", "content": text}] for text in texts]
    images = {
        json.dumps(prompt): Image.fromarray(sample.pixels)
        for prompt, sample in zip(prompts, samples, strict=True)
    }
    data = Dataset.from_list([{"prompt": prompt} for prompt in prompts]).with_transform(
        lambda rows: rows | {"image": [images[json.dumps(prompt)] for prompt in rows["prompt"]]}
    )
    processor = load_processor(folder)
    trainer = GRPOTrainer(str(folder), spread, args, data, processing_class=processor)
    return trained(trainer, processor.tokenizer)


def test_both_ways_train_what_trl_trains(folder, family, shapes, tmp_path):
    on, samples, texts = train_ours(folder, shapes, make_args(tmp_path), shared_prefix="on")
    off, *_ = train_ours(folder, shapes, make_args(tmp_path), shared_prefix="off")
    assert all(FRAME_SIZES[family] in text for text in texts)
    expected = train_theirs(folder, make_args(tmp_path, shuffle_dataset=False), samples, texts)
    assert_equal(on, expected)
    assert_equal(off, expected)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return make_llava(tmp_path_factory.mktemp("llava"))


class TestAnotherFamily:
    def test_trains_what_trl_trains(self, llava, shapes, tmp_path):
        asks = {"answer_frame": "per_mille"}
        found, samples, texts = train_ours(llava, shapes, make_args(tmp_path), **asks)
        assert {sample.model_size for sample in samples} == {(112, 112)}  # as they are
        args = make_args(tmp_path, shuffle_dataset=False)
        # Weights of the vision tower's last layers are not used: LLaVA takes the last but one.
        assert_equal(found, train_theirs(llava, args, samples, texts), all_move=False)

    def test_samples(self, llava, shapes, tmp_path, caplog):
        args = make_args(tmp_path, steps_per_generation=2, gradient_accumulation_steps=2)
        trainer = PersonalizedGRPOTrainer(
            str(llava),
            "format_reward",
            args,
            shapes.records,
            images_root=shapes.images,
            answer_frame="per_mille",
        )
        assert not trainer.shared_prefix
        image_token = trainer.model.config.image_token_id
        assert image_token in trainer.generation_config.suppress_tokens
        trainer.train()
        trainer.close()
        assert trainer.state.global_step == 1

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({}, "answer_frame=None: is not known for model_type 'llava'"),
            ({"shared_prefix": "on"}, "model_type 'llava' is not one of"),
            ({"freeze_vision_tower": True}, "freeze_vision_tower=True: is not known for"),
        ],
    )
    def test_what_it_cannot_do_is_named(self, llava, shapes, tmp_path, changes, words):
        if changes:
            changes = changes | {"answer_frame": "per_mille"}
        with pytest.raises(ConfigError, match=words):
            train_ours(llava, shapes, make_args(tmp_path), **changes)

    def test_sizes_are_its_own(self, llava):
        with pytest.raises(ConfigError, match="max_pixels=5: is not for LlavaProcessor"):
            load_processor(llava, max_pixels=5)

    def test_a_text_with_two_images(self, llava):
        processor = load_processor(llava)
        pixels = [np.zeros((56, 56, 3), np.uint8)]
        with pytest.raises(RecordError, match="image_token"):
            encode_by_processor(processor, pixels, ["<|image_pad|><|image_pad|>"])

    def test_a_processor_that_makes_more(self, llava):
        def processor(**_):
            ids, tiles = torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 5, 3, 8, 8)
            return {"input_ids": ids, "pixel_values": tiles, "pixel_attention_mask": tiles}

        pixels = [np.zeros((56, 56, 3), np.uint8)]
        with pytest.raises(ConfigError, match="makes pixel_attention_mask"):
            encode_by_processor(processor, pixels, ["?"])


def test_answers_behind_a_shared_prompt(folder, family):
    """Log-probabilities, gradients and greedy tokens are those of each completion alone."""
    processor, model = load_processor(folder), load_model(folder)
    multiple = resize_rule(processor.image_processor).multiple
    sizes = [(3 * multiple, 2 * multiple), (multiple, 4 * multiple)]
    groups = make_groups(processor, sizes, 4)
    ids, mask = make_completions(groups, list(LENGTHS))
    expected = score_one_by_one(model, groups, ids, mask)
    expected_gradients = gradients(model, expected[0])
    for attention in ("two_part", "dense"):
        found = score_together(model, groups, ids, mask, attention=attention)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        for name, gradient in gradients(model, found[0]).items():
            error = (expected_gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
            assert error < 1e-5, (attention, name)
    config = generation_config(processor)
    alone = [ids for ids in generate_alone(model, groups, config) for _ in range(4)]
    together = generate(model, groups, config).tolist()
    assert [row[: len(own)] for row, own in zip(together, alone, strict=True)] == alone
    # Once more from a tower's kept features.
    known = replace(groups, image_features=encode_images(model, groups))
    kept = score_together(model, known.rows(2, 8), ids[2:], mask[2:])
    torch.testing.assert_close(kept[0], expected[0][2:], rtol=0, atol=1e-5)
