import json

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.memory.model_sizes import SIZE_NAMES, MetaModel, find_config
from tests.train.setup.small_configs import MODEL_TYPES, small_config

ON_THE_HUB = {
    "3B": 3_754_622_976,
    "7B": 8_292_166_656,
    "32B": 33_452_718_336,
    "72B": 73_410_777_344,
}


@pytest.mark.parametrize("name", SIZE_NAMES)
def test_weights_are_those_of_the_hub(name):
    model = MetaModel(find_config(name))
    assert {weight.device.type for weight in model.module.parameters()} == {"meta"}
    assert model.num_weights == ON_THE_HUB[name]
    table = model.config.text_config.vocab_size * model.config.text_config.hidden_size
    assert model.parts["embedding"] == model.largest_module_weights == table
    assert model.parts["head"] == (0 if name == "3B" else table)


def test_parts_by_hand():
    hidden, inner, kv, num_layers = 2048, 11008, 256, 36
    layer = 2 * hidden**2 + hidden + 2 * (hidden * kv + kv) + 3 * hidden * inner + 2 * hidden
    parts = MetaModel(find_config("3B")).parts
    assert parts["layers"] == num_layers * layer
    assert sum(parts.values()) == ON_THE_HUB["3B"] - hidden  # the last norm


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_every_family_has_the_weights_of_a_real_model(family):
    config = small_config(family)
    model, real = MetaModel(config), AutoModelForImageTextToText.from_config(config)
    assert model.num_weights == sum(weight.numel() for weight in real.parameters())
    tower = real.get_encoder(modality="image").parameters()
    assert model.parts["tower"] >= sum(weight.numel() for weight in tower) > 0
    assert model.num_weights - sum(model.parts.values()) == 64
    assert (len(model.layers), len(model.blocks)) == (4, 2)
    assert (model.parts["head"] == 0) == config.tie_word_embeddings


def test_nothing_is_shared_out_where_zero_3_is_on():
    settings = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
    alive = HfDeepSpeedConfig(settings)
    for family in ("qwen2_5_vl", "llava"):
        model = MetaModel(small_config(family))
        assert all(weight.numel() for weight in model.module.parameters())
        assert not any(hasattr(weight, "ds_id") for weight in model.module.parameters())
    assert is_deepspeed_zero3_enabled()
    del alive


def test_a_large_model_of_another_family():
    # transformers' own default, LLaVA-1.5-7B without its three added tokens.
    assert MetaModel(AutoConfig.for_model("llava")).num_weights == 7_062_902_784


def test_the_hubs_flat_form_is_read(tmp_path):
    nested = find_config("3B").to_dict()
    flat = {**nested.pop("text_config"), **nested, "model_type": "qwen2_5_vl"}
    flat["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert MetaModel(find_config(str(tmp_path))).num_weights == ON_THE_HUB["3B"]


def test_names_and_folders(tmp_path, tiny_folder):
    for name in ("72b", "Qwen/Qwen2.5-VL-72B-Instruct"):
        assert find_config(name).get_text_config().hidden_size == 8192
    assert find_config(str(tiny_folder)).get_text_config().hidden_size == 128
    with pytest.raises(ConfigError, match="one of 3B, 7B, 32B, 72B"):
        find_config("8B")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        find_config("some/model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="is no image-and-text model"):
        find_config(str(tmp_path))


def test_what_no_model_can_be_made_of():
    with pytest.raises(ConfigError, match="cannot be built from its configuration"):
        MetaModel(PreTrainedConfig())
