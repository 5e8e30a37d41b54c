"""A policy of some five million random weights, in a family's real architecture."""

from pathlib import Path

from benchmarks.gpu.deep_policy import DEPTHS
from grpo_stream.train.models.tiny import RECIPES, tiny_config, train_tokenizer, write_policy

_NUM_LAYERS = 4


def make_policy(
    folder: Path, hidden_size: int, family: str = "qwen2_5_vl", *, is_deep: bool = False
) -> Path:
    """Writes the policy as ``from_pretrained`` reads it.

    Args:
        folder: Is made.
        hidden_size: Of the text model, a multiple of 64; 256 makes about 5 million weights.
        family: ``config.model_type``, one that a tiny policy can be made of.
        is_deep: As many layers and blocks as the real model has.

    Returns:
        ``folder``.
    """
    tokenizer = train_tokenizer(["Click on the button. (12, 345)"], family=family)
    config = tiny_config(tokenizer, family)
    text, vision = config.text_config, config.vision_config
    text.hidden_size = hidden_size
    text.intermediate_size = 4 * hidden_size
    text.num_hidden_layers = _NUM_LAYERS
    kinds = text.layer_types or ["full_attention"]
    text.layer_types = [*[kinds[0]] * (_NUM_LAYERS - 1), kinds[-1]]
    text.num_attention_heads, text.num_key_value_heads = hidden_size // 32, hidden_size // 64
    if family in RECIPES:  # the others' towers stay as they are
        vision.hidden_size, vision.intermediate_size = hidden_size // 2, hidden_size
        vision.out_hidden_size = hidden_size
    if is_deep:
        DEPTHS[family].put_into(config)
    return write_policy(folder, config, tokenizer)
