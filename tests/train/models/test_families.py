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
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.families import FAMILIES, PREFIX_LMS
from grpo_stream.train.models.processor import known_rule, load_processor
from grpo_stream.train.models.processor_only import encode_by_processor
from grpo_stream.train.models.tiny import TINY_FAMILIES, make_tiny_policy
from grpo_stream.train.prefix.backbone import encode_images
from grpo_stream.train.prefix.ways import FORKED, PLAIN
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.prefix.sampling.test_generation import generate, generate_alone, generation_config
from tests.train.prefix.test_packing import (
    LENGTHS,
    gradients,
    make_completions,
    score_one_by_one,
    score_together,
)
from tests.train.support import QUIET, TASK_TEXTS, load_model, make_groups, make_mixed_groups

FEW = ("qwen2_5_vl", "qwen3_5", "gemma3", "smolvlm")
SHARED = [name for name in TINY_FAMILIES if name not in PREFIX_LMS]
PACKED = [name for name, row in FAMILIES.items() if row.is_packed]


def families(names):
    """Parameters: some families in every test run, all of them in the slow one."""
    reason = "each family adds seconds, and all of them half a minute"
    slow = pytest.mark.slow(reason=reason)
    return [pytest.param(name, marks=() if name in FEW else slow) for name in names]


@pytest.mark.parametrize(
    ("model_type", "processor"),
    [(model_type, row.processor) for model_type, row in FAMILIES.items() if row.processor],
)
def test_a_row_is_as_transformers_has_it(model_type, processor):
    tower = AutoConfig.for_model(model_type).vision_config
    assert processor.name == PROCESSOR_MAPPING_NAMES[model_type]
    assert processor.resize_multiple == tower.patch_size * tower.spatial_merge_size


def test_every_row_is_tested_here_or_beside():
    # Here, as it imports this module.
    from tests.train.models.test_given_families import CONFIGS

    assert {*SHARED, *CONFIGS, *PREFIX_LMS} >= set(FAMILIES)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, tiny_folder):
    made = {"qwen2_5_vl": tiny_folder}

    def make(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = make_tiny_policy(folder, TASK_TEXTS, family=family)
        return made[family]

    return make


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


@pytest.mark.parametrize("family", families(SHARED))
def test_every_way_trains_what_trl_trains(folder_of, family, shapes, tmp_path):
    folder, asks = folder_of(family), {}
    if family not in FAMILIES:
        asks["answer_frame"] = "per_mille"
    found = {}
    for way in ("forked", "off", *(["packed"] if family in PACKED else [])):
        args = make_args(tmp_path)
        found[way], samples, texts = train_ours(folder, shapes, args, shared_prefix=way, **asks)
    size = "112x112" if family == "qwen2_5_vl" else "1000x1000"
    assert all(size in text for text in texts)
    if family == "llava_onevision":  # trl 1.16 has no argument for its batch_num_images
        assert_equal(found["forked"], found["off"], all_move=False)
        return
    args = make_args(tmp_path, shuffle_dataset=False)
    expected = train_theirs(folder, args, samples, texts)
    # Weights of LLaVA's last layers of the tower are not used: it takes the last but one.
    for one in found.values():
        assert_equal(one, expected, all_move=not family.startswith("llava"))


@pytest.fixture(scope="module")
def llava(folder_of):
    return folder_of("llava")


class TestAFamilyWithoutARow:
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
        assert trainer.prefix_way == "forked"
        image_token = trainer.model.config.image_token_id
        assert image_token in trainer.generation_config.suppress_tokens
        trainer.train()
        trainer.close()
        assert trainer.state.global_step == 1

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({}, "answer_frame=None: is not known for model_type 'llava'"),
            ({"shared_prefix": "packed"}, "model_type 'llava' is not one of"),
        ],
    )
    def test_what_it_cannot_do_is_named(self, llava, shapes, tmp_path, changes, words):
        if changes:
            changes = changes | {"answer_frame": "per_mille"}
        with pytest.raises(ConfigError, match=words):
            train_ours(llava, shapes, make_args(tmp_path), **changes)

    def test_its_tower_can_be_left_as_it_is(self, llava, shapes, tmp_path):
        asks = {"answer_frame": "per_mille", "freeze_vision_tower": True}
        (_, changes), *_ = train_ours(llava, shapes, make_args(tmp_path), **asks)
        for name, change in changes.items():
            assert bool(change.any()) is not name.startswith("model.vision_tower"), name

    def test_sizes_are_its_own(self, llava):
        with pytest.raises(ConfigError, match="max_pixels=5: is not for LlavaProcessor"):
            load_processor(llava, max_pixels=5)

    def test_a_text_with_two_images(self, llava):
        processor = load_processor(llava)
        pixels = [[np.zeros((56, 56, 3), np.uint8)]]
        with pytest.raises(RecordError, match="image_token"):
            encode_by_processor(processor, pixels, ["<|image_pad|><|image_pad|>"])

    def test_a_processor_without_pixels(self, llava):
        def processor(**_):
            return {"input_ids": torch.ones(1, 3, dtype=torch.long), "flattened": torch.ones(1)}

        pixels = [[np.zeros((56, 56, 3), np.uint8)]]
        with pytest.raises(ConfigError, match="makes flattened, input_ids, but no pixel_values"):
            encode_by_processor(processor, pixels, ["?"])


def make_family_groups(folder, num_generations):
    processor = load_processor(folder)
    rule = known_rule(processor.image_processor)
    multiple = 28 if rule is None else rule.multiple
    sizes = [(3 * multiple, 2 * multiple), (multiple, 4 * multiple)]
    return processor, make_groups(processor, sizes, num_generations)


@pytest.mark.parametrize("family", families(SHARED))
def test_answers_behind_a_forked_prompt(folder_of, family):
    """Log-probabilities, gradients and greedy tokens are those of each completion alone."""
    processor, groups = make_family_groups(folder_of(family), 4)
    model = load_model(folder_of(family), is_prepared=False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids, mask = make_completions(groups, list(LENGTHS))
    expected = rows_alone(model, groups, ids, mask)
    expected_gradients = gradients(model, expected[0])
    others = replace(groups, media=[{**own, "pixel_values": 1 - own["pixel_values"]}
                                    for own in groups.media])  # fmt: skip
    assert (rows_alone(model, others, ids, mask)[0] - expected[0]).abs().max() > 0.01
    for is_checkpointed in (False, True):
        model.train()
        if is_checkpointed:
            model.activation_checkpointing_enable()
        found = FORKED.score(model, groups, ids, mask, compute_entropy=True)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        total = vector(expected_gradients).norm()
        found_gradients = gradients(model, found[0])
        assert (vector(found_gradients) - vector(expected_gradients)).norm() < 1e-5 * total
        for name, gradient in expected_gradients.items():
            # Some gradients are nothing but rounding: a bias of keys changes no attention.
            length = gradient.norm().clamp(min=1e-3 * total)
            assert (found_gradients[name] - gradient).norm() < 3e-4 * length, name
    model.eval()
    config = generation_config(processor)
    plain, forked = (way.sample(model, groups, config, 0) for way in (PLAIN, FORKED))
    assert torch.equal(plain, forked)


@pytest.mark.parametrize("family", families(SHARED))
def test_one_no_and_two_images(folder_of, family):
    """The same for prompts of any number of images; a text has a rank look at a small image."""
    groups = make_mixed_groups(load_processor(folder_of(family)), (0, 1, 2), num_ranks=2)
    model = load_model(folder_of(family), is_prepared=False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids, mask = make_completions(groups, list(LENGTHS[: groups.num_rows]))
    expected = rows_alone(model, replace(groups, spare=None), ids, mask)
    found = FORKED.score(model, groups, ids, mask, compute_entropy=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-5)
    touched = []
    for rows in (slice(0, 2), slice(2, 4)):
        part = groups.rows(rows.start, rows.stop)
        log_probs, _ = FORKED.score(model, part, ids[rows], mask[rows], compute_entropy=False)
        touched.append(gradients(model, log_probs).keys())
    assert touched[0] == touched[1]


def vector(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def rows_alone(model, groups, ids, mask):
    """Every completion behind its own prompt, without padding."""
    rows = zip(
        [groups.rows(row, row + 1) for row in range(groups.num_rows)], ids, mask, strict=True
    )
    scores = [
        PLAIN.score(model, row, one[None], kept[None], compute_entropy=True)
        for row, one, kept in rows
    ]
    return [torch.cat(parts) for parts in zip(*scores, strict=True)]


@pytest.mark.parametrize("family", PACKED)
def test_answers_behind_a_packed_prompt(folder_of, family):
    """Log-probabilities, gradients and greedy tokens are those of each completion alone."""
    processor, groups = make_family_groups(folder_of(family), 4)
    model = load_model(folder_of(family))
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
