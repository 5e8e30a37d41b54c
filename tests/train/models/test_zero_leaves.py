"""Leaf modules under ZeRO-3; training with them: tests/multiprocess/test_shared_prefix.py."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.zero import stage3
from deepspeed.utils import get_z3_leaf_modules
from transformers import AutoConfig, AutoModelForImageTextToText

from grpo_stream.train.models.tiny import TINY_FAMILIES, make_tiny_policy
from grpo_stream.train.models.zero_leaves import leaf_layers


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_tiny_policy(folder, ["click on it"], family=request.param)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))


def test_nothing_is_done_unless_wanted(model):
    own = stage3.z3_leaf_parameter
    with leaf_layers(model, is_wanted=False):
        assert stage3.z3_leaf_parameter is own
    assert get_z3_leaf_modules(model) == []


def test_every_layer_is_a_leaf_and_gradients_know_of_none(model):
    config = model.config
    depth = getattr(config.vision_config, "depth", None) or config.vision_config.num_hidden_layers
    weight = SimpleNamespace(ds_z3_leaf_module=model)
    with leaf_layers(model, is_wanted=True):
        assert len(get_z3_leaf_modules(model)) == depth + config.text_config.num_hidden_layers
        assert not stage3.z3_leaf_parameter(weight)
    assert stage3.z3_leaf_parameter(weight)
