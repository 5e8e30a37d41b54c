from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from grpo_stream.errors import ConfigError
from grpo_stream.train.prefix.backbone import (
    backbone_of,
    encode_images,
    freeze_vision_tower,
    has_frozen_vision_tower,
    image_kwargs,
    prompt_positions,
)
from tests.train.support import make_groups

MIXED = ((56, 56), (112, 84), (28, 112))


def with_lora(model, *names):
    return get_peft_model(model, LoraConfig(target_modules=list(names), r=2))


def test_backbone(model):
    backbone = model.model
    assert backbone_of(model) is backbone
    assert backbone_of(with_lora(model, "q_proj")) is backbone


def test_positions_are_the_models(model, processor):
    groups = make_groups(processor, MIXED, 1)
    positions = prompt_positions(model.model, groups)
    for own, ids, (width, height) in zip(positions, groups.prompt_ids, MIXED, strict=True):
        assert own.shape == (3, len(ids))
        is_image = own[1] != own[0]
        assert is_image.sum() >= (width // 28) * (height // 28) - max(width, height) // 28
        # After the image, all axes go on together from one past the largest of its positions.
        assert (own[0, -3:] == own[1, -3:]).all()
        assert (own[0, -3:].diff() == 1).all()


def test_positions_that_are_known_are_given_back(model, processor):
    groups = make_groups(processor, MIXED, 1)
    groups = replace(groups, positions=prompt_positions(model.model, groups))
    assert prompt_positions(None, groups) is groups.positions


class TestFrozenTower:
    def test_of_a_whole_model(self, model):
        assert not has_frozen_vision_tower(model)
        freeze_vision_tower(model)
        assert has_frozen_vision_tower(model)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert not any("visual" in name for name in trained)
        assert {"lm_head.weight", "model.language_model.norm.weight"} <= trained

    def test_lora_on_the_text_model_leaves_it_frozen(self, model):
        model = with_lora(model, "q_proj")
        assert has_frozen_vision_tower(model)
        freeze_vision_tower(model)
        assert any(p.requires_grad for p in model.parameters())

    def test_lora_in_the_tower_is_refused(self, model):
        model = with_lora(model, "qkv")
        assert not has_frozen_vision_tower(model)
        with pytest.raises(ConfigError, match="lora_target_modules"):
            freeze_vision_tower(model)


def test_features_of_each_prompt(model, processor):
    groups = make_groups(processor, MIXED, 2)
    features = encode_images(model, groups)
    assert [tuple(one.shape) for one in features] == [(1, w * h // 28**2, 128) for w, h in MIXED]
    assert not any(one.requires_grad for one in features)
    known = replace(groups, image_features=features)
    for start, stop in ((0, 2), (1, 5), (4, 6)):
        part = known.rows(start, stop)
        (encoded,) = image_kwargs(part)["mm_encoder_outputs"].values()
        expected = encode_images(model, groups.rows(start, stop))
        torch.testing.assert_close(encoded.pooler_output, tuple(one[0] for one in expected))
        assert encoded.deepstack_features == []
    assert set(image_kwargs(groups)) == {"pixel_values", "image_grid_thw"}
