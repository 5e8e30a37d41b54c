"""Small configurations of real architectures, from sizes alone."""

from transformers import AutoConfig

_TEXT = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_FIXED = _TOWER | {"num_attention_heads": 2, "image_size": 56, "patch_size": 14}
_MERGED = _TOWER | {"depth": 2, "num_heads": 2, "out_hidden_size": 64}
_DEEPSTACK = _MERGED | {"deepstack_visual_indexes": [0, 1]}


def _rope(*section, **changes):
    values = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}
    return {"rope_parameters": values | changes}


_PARTS = {
    "qwen2_vl": (_rope(2, 3, 3), {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}),
    "qwen2_5_vl": (_rope(2, 3, 3), _MERGED),
    "qwen3_vl": (_rope(2, 3, 3), _DEEPSTACK),
    "qwen3_vl_moe": (
        _rope(2, 3, 3) | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        _DEEPSTACK,
    ),
    "qwen3_5": (
        _rope(2, 1, 1, partial_rotary_factor=0.5)
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
        _MERGED,
    ),
    "gemma3": ({"sliding_window": 8}, _FIXED | {"model_type": "siglip_vision_model"}),
    "llava": ({"model_type": "llama"}, _FIXED | {"model_type": "clip_vision_model"}),
    "glm4v": (_rope(2, 3, 3, partial_rotary_factor=1.0), _MERGED),
}
MODEL_TYPES = tuple(_PARTS)
"""``config.model_type`` of each."""


def small_config(model_type):
    text, tower = _PARTS[model_type]
    return AutoConfig.for_model(model_type, text_config=_TEXT | text, vision_config=tower)
