"""Attention of one token of each row: keys are read once for the query heads that share them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grpo_stream.train.models.base_model import base_model

_NAME = "token_sdpa"
# What transformers' own attention does more where it is asked to.
_OPTIONS = ("softcap", "position_bias", "cache")


@contextmanager
def token_attention(model: Any) -> Iterator[None]:
    """Within it, text layers that attend by ``sdpa`` do so through :func:`attend_from_token`.

    Args:
        model: An image-and-text model; LoRA may be around it.
    """
    config = base_model(model).config.get_text_config(decoder=True)
    own = config._attn_implementation  # noqa: SLF001 - what every layer reads (transformers 5.23)
    if own == "sdpa":
        AttentionInterface.register(_NAME, attend_from_token)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        config._attn_implementation = _NAME  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = own  # noqa: SLF001


def attend_from_token(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the signature of transformers' ``AttentionInterface``.

    The same as ``sdpa_attention_forward`` (transformers 5.23), which in a graph copies keys and
    values for all query heads: here those that share a head stand one below the other.

    Args:
        module: The layer's attention.
        query: Shape (B, H, 1, D); of other lengths it is transformers' own.
        key: Shape (B, K, S, D).
        value: The same shape, or of another width.
        attention_mask: What is seen, shape (B, 1, 1, S).
        scaling: Of the products.
        **kwargs: Passed on to transformers' own attention.

    Returns:
        Shape (B, 1, H, D), and no weights.
    """
    repeats: int = getattr(module, "num_key_value_groups", 1)
    is_asked = any(kwargs.get(name) is not None for name in _OPTIONS)
    if query.size(2) > 1 or repeats == 1 or is_asked:
        kwargs["scaling"] = scaling
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0], None
    rows = query.reshape(len(query), -1, repeats, query.size(3))
    output = scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(len(query), 1, -1, value.size(3)), None
