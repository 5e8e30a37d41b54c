"""A policy of some five million random weights, in Qwen2.5-VL's architecture."""

from pathlib import Path

from grpo_stream.train.models.tiny import tiny_config, train_tokenizer, write_policy

_NUM_LAYERS = 4


def make_policy(folder: Path, hidden_size: int) -> Path:
    """Writes the policy as ``from_pretrained`` reads it.

    Args:
        folder: Is made.
        hidden_size: Of the text model, a multiple of 64; 256 makes about 5 million weights.

    Returns:
        ``folder``.
    """
    tokenizer = train_tokenizer(["Click on the button. (12, 345)"])
    config = tiny_config(tokenizer)
    text, vision = config.text_config, config.vision_config
    text.hidden_size = vision.out_hidden_size = hidden_size
    text.intermediate_size = 4 * hidden_size
    text.num_hidden_layers = _NUM_LAYERS
    text.layer_types = ["full_attention"] * _NUM_LAYERS
    text.num_attention_heads, text.num_key_value_heads = hidden_size // 32, hidden_size // 64
    vision.hidden_size, vision.intermediate_size = hidden_size // 2, hidden_size
    return write_policy(folder, config, tokenizer)
