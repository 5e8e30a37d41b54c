import json

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.model_sizes import SHAPES, ModelShape, find_shape

ON_THE_HUB = {
    "3B": 3_754_622_976,
    "7B": 8_292_166_656,
    "32B": 33_452_718_336,
    "72B": 73_410_777_344,
}


def config_of(shape):
    text = {k: v for k, v in vars(shape).items() if k != "vision"}
    vision = {**vars(shape.vision), "out_hidden_size": shape.hidden_size}
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=shape.tie_word_embeddings
    )


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_those_of_the_model(name):
    shape = SHAPES[name]
    config = config_of(shape)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.tie_weights()
    counted = sum(weight.numel() for weight in model.parameters())
    assert shape.num_weights == counted == ON_THE_HUB[name]
    layer = model.model.language_model.layers[0]
    assert shape.layer_weights == sum(weight.numel() for weight in layer.parameters())
    assert ModelShape.from_config(config.to_dict()) == shape


def test_the_hubs_flat_form_is_read():
    nested = config_of(SHAPES["3B"]).to_dict()
    flat = {**nested.pop("text_config"), **nested}
    assert ModelShape.from_config(flat) == SHAPES["3B"]


def test_names_and_folders(tmp_path, tiny_folder):
    assert find_shape("72b") is find_shape("Qwen/Qwen2.5-VL-72B-Instruct") is SHAPES["72B"]
    assert find_shape(str(tiny_folder)).hidden_size == 128
    with pytest.raises(ConfigError, match="one of 3B, 7B, 32B, 72B"):
        find_shape("some/model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match=r"must be a Qwen2\.5-VL model"):
        find_shape(str(tmp_path))
