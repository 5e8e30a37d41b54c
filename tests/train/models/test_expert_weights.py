"""Experts' files in both layouts that exist of them."""

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from grpo_stream.train.models.expert_weights import TransposeToFit
from tests.train.setup.small_configs import small_config

NAME = "model.language_model.layers.0.mlp.experts.down_proj"


@pytest.fixture
def model():
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(small_config("qwen3_vl_moe"))


@pytest.mark.parametrize("is_partitioned", [False, True])
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_weight_is_turned_where_it_has_to_be(model, is_turned, is_partitioned):
    """Also under ZeRO-3, where a weight is empty and its shape is ``ds_shape``."""
    weight = model.get_parameter(NAME)
    found = torch.rand(weight.shape)
    if is_partitioned:
        weight.ds_shape, weight.data = weight.shape, torch.empty(0, device="meta")
    mapping = get_checkpoint_conversion_mapping("qwen3_vl_moe")
    (one,) = [entry for entry in mapping if "down_proj" in entry.target_patterns[0]]
    (operation,) = one.operations
    given = {one.source_patterns[0]: [found.transpose(1, 2) if is_turned else found]}
    patterns = (one.source_patterns, one.target_patterns)
    made = operation.convert(given, *patterns, model=model, full_layer_name=NAME)
    assert torch.equal(made[one.target_patterns[0]], found)
    assert isinstance(operation.reverse_op, TransposeToFit)


def test_experts_are_weights_of_one_module(model):
    """So every rank calls it under ZeRO-3, whatever its tokens choose."""
    experts = [one for name, one in model.named_modules() if name.endswith(".experts")]
    assert len(experts) == len(model.get_decoder().layers)
    for one in experts:
        assert {name for name, _ in one.named_parameters()} == {"gate_up_proj", "down_proj"}
