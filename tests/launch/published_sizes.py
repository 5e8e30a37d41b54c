"""The sizes of published models, as their ``config.json`` has them, in a folder without weights.

Source: ``config.json`` of the models on the Hugging Face hub, sizes alone. The weights that follow
are as many as the hub counts for Qwen2.5-VL and Qwen3-VL; for Qwen3.5 it also counts a layer that
predicts further tokens, which transformers does not load.
"""

import json

from transformers import AutoConfig

from grpo_stream.train.setup.memory.model_sizes import find_config

_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "num_position_embeddings": 2304,
}
_DEEPSTACK = _TOWER | {"deepstack_visual_indexes": [8, 16, 24]}
_SIZES = {
    "Qwen/Qwen3-VL-8B-Instruct": (
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        _DEEPSTACK | {"out_hidden_size": 4096},
    ),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": (
        "qwen3_vl_moe",
        "Qwen3VLMoeForConditionalGeneration",
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
        },
        _DEEPSTACK | {"out_hidden_size": 2048},
    ),
    "Qwen/Qwen3.5-9B": (
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        {
            "vocab_size": 248320,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "full_attention_interval": 4,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
        },
        _TOWER | {"out_hidden_size": 4096},
    ),
}


def published_config(model_id):
    """The configuration of a model of the hub, without asking it."""
    if model_id not in _SIZES:
        return find_config(model_id)
    model_type, architecture, text, vision = _SIZES[model_id]
    return AutoConfig.for_model(
        model_type,
        architectures=[architecture],
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
    )


def write_published(folder, model_id):
    """Writes its ``config.json``."""
    content = published_config(model_id).to_dict()
    content.setdefault("architectures", None)
    content["architectures"] = content["architectures"] or ["Qwen2_5_VLForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(content))
    return folder
