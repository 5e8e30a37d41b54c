"""Model families: each is trained by the real trainer and held to trl's own way of training it."""

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer

from grpo_stream.train.backbone import encode_images
from grpo_stream.train.processor import load_processor, resize_rule
from grpo_stream.train.tiny import FAMILIES, make_tiny_policy
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.support import TASK_TEXTS, load_model, make_groups
from tests.train.test_prefix import (
    LENGTHS,
    gradients,
    make_completions,
    score_one_by_one,
    score_together,
)
from tests.train.test_rollout import generate, generate_alone, generation_config

FRAME_SIZES = {"qwen2_5_vl": "112x112", "qwen2_vl": "1000x1000", "qwen3_vl": "1000x1000"}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory, tiny_folder):
    if family == "qwen2_5_vl":
        return tiny_folder
    return make_tiny_policy(tmp_path_factory.mktemp(family), TASK_TEXTS, family=family)


def make_args(folder, **changes):
    settings = {
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
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


def assert_equal(found, expected):
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    total = sum(change.norm() for change in expected[1].values())
    assert total > 0
    assert sum((found[1][n] - change).norm() for n, change in expected[1].items()) < 1e-4 * total
    assert [name for name, change in expected[1].items() if not change.abs().max()] == []


def test_both_ways_train_what_trl_trains(folder, family, shapes, tmp_path):
    processor = load_processor(folder)
    ours = {}
    for shared_prefix in ("on", "off"):
        trainer = PersonalizedGRPOTrainer(
            str(folder),
            spread,
            make_args(tmp_path),
            shapes.records,
            processing_class=processor,
            images_root=shapes.images,
            shared_prefix=shared_prefix,
        )
        ours[shared_prefix] = trained(trainer, processor.tokenizer)
        samples = trainer.train_stream.read_batch(0, 0)
        trainer.close()
    rows = []
    for sample in samples:
        size = trainer.data_collator([sample])["prompt"][0][-1]["content"][-1]["text"]
        assert FRAME_SIZES[family] in size
        prompt = [{"role": "user", "content": size}]
        rows.append({"prompt": prompt, "image": Image.fromarray(sample.pixels)})
    data = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    images = {json.dumps(row["prompt"]): row["image"] for row in rows}
    data = data.with_transform(
        lambda batch: batch | {"image": [images[json.dumps(p)] for p in batch["prompt"]]}
    )
    args = make_args(tmp_path, shuffle_dataset=False)
    theirs = GRPOTrainer(str(folder), spread, args, data, processing_class=processor)
    expected = trained(theirs, processor.tokenizer)
    assert_equal(ours["off"], expected)
    assert_equal(ours["on"], expected)


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
