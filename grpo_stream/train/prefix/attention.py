"""Attention that knows where a group's shared prefix ends.

Registered with transformers (5.23) under :data:`SHARED_PREFIX`, so that the ordinary ``model(...)``
call reaches it. What it has to know travels with the call, as the keyword ``shared_prefix``:
transformers hands unknown keywords down to the attention of every layer, and gradient checkpointing
keeps them for the recomputation. Without that keyword it is plain ``sdpa``.

Shapes: B rows, H heads of queries, K heads of keys and values (a divisor of H), L tokens of a row,
D width of a head; P tokens of a prefix, G completions of C tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grpo_stream.train.models.base_model import base_model
from grpo_stream.train.prefix.log_sums import gives_log_sums, merged_attention
from grpo_stream.train.prefix.sampling.group_cache import GroupCache

SHARED_PREFIX = "shared_prefix"
"""Name of the attention, for ``attn_implementation``."""


@dataclass(frozen=True, eq=False)
class GroupSpan:
    """One group's place in a packed row: its prefix, and behind it its completions."""

    start: int
    """Where the prefix begins in the row."""
    prefix_length: int
    """P, tokens of the prefix; may be 0."""
    own: torch.Tensor
    """int64, shape (G, C): places of each completion's tokens, from the prefix's end. A shorter
    completion is filled up with any of them."""
    kept: torch.Tensor
    """int64, shape (tokens of all completions,): places in a flattened (G, C) that are no filling,
    in the order of the row."""

    @cached_property
    def mask(self) -> torch.Tensor:
        """bool, shape (C, P + C): what a completion sees of the prefix and of its own tokens.

        The same for all, since filling is at the end. For attention that gives no log-sums.
        """
        length = self.own.size(1)
        seen = torch.ones(
            length, self.prefix_length + length, dtype=torch.bool, device=self.own.device
        )
        return seen.tril(self.prefix_length)

    @cached_property
    def is_token(self) -> torch.Tensor:
        """bool, shape (G * C, 1): what is no filling."""
        flags = torch.zeros(self.own.numel(), 1, dtype=torch.bool, device=self.own.device)
        return flags.index_fill(0, self.kept, value=True)


@dataclass(frozen=True, eq=False)
class TwoPart:
    """Attention of a packed row in two kinds of parts, none with a product that is masked away.

    A prefix attends to itself, causally. The completions of a group, as a batch of G, attend to
    the prefix and to themselves. Products between completions, and those of the prefix with
    completions, are never computed, and no mask of L x L entries exists.
    """

    spans: list[GroupSpan]
    """Of all groups of the row; together they cover it."""

    def attend(
        self,
        _layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        """Attention of one row: (1, H, L, D), (1, K, L, D) twice -> (1, H, L, D)."""
        parts = []
        for span in self.spans:
            prefix = slice(span.start, span.start + span.prefix_length)
            if span.prefix_length:
                parts.append(
                    scaled_dot_product_attention(
                        query[:, :, prefix],
                        key[:, :, prefix],
                        value[:, :, prefix],
                        dropout_p=dropout,
                        is_causal=True,
                        scale=scaling,
                        enable_gqa=True,
                    )
                )
            if len(span.kept):
                parts.append(_attend_from_completions(span, query, key, value, scaling, dropout))
        return torch.cat(parts, dim=2)


def prefixes_alone(lengths: Sequence[int], device: torch.device) -> TwoPart:
    """A row of prefixes without completions.

    Args:
        lengths: Of the prefixes, in tokens, in the order of the row.
        device: Of the row.
    """
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    starts = accumulate(lengths, initial=0)
    spans = [
        GroupSpan(start, length, nothing[None], nothing)
        for start, length in zip(starts, lengths, strict=False)
    ]
    return TwoPart(spans)


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    shared_prefix: TwoPart | GroupCache | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the signature of transformers' ``AttentionInterface``.

    Args:
        module: The layer's attention.
        query: Shape (B, H, L, D).
        key: Shape (B, K, L, D).
        value: The same shape.
        attention_mask: A dense mask or a flex ``BlockMask``, used when nothing is shared.
        scaling: Of the products.
        dropout: Of the weights.
        shared_prefix: How the tokens of this call share a prefix.
        **kwargs: Passed on to transformers' own attention.

    Returns:
        Shape (B, L, H, D), and no weights.
    """
    if shared_prefix is not None:
        layer: int = module.layer_idx  # type: ignore[assignment]
        output = shared_prefix.attend(layer, query, key, value, scaling, dropout)
        return output.transpose(1, 2).contiguous(), None
    kwargs |= {"scaling": scaling, "dropout": dropout}
    plain = (
        flex_attention_forward if isinstance(attention_mask, BlockMask) else sdpa_attention_forward
    )
    return plain(module, query, key, value, attention_mask, **kwargs)[0], None


def use_shared_prefix_attention(model: Any) -> None:
    """Makes the text model attend through :func:`shared_prefix_attention`; the tower is left alone.

    Args:
        model: An image-and-text model whose text model attends by ``sdpa``; transformers' own, or
            one with LoRA around it.
    """
    AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
    AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
    base = base_model(model)
    base.set_attn_implementation({"text_config": SHARED_PREFIX})


def _attend_from_completions(
    span: GroupSpan,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Completions of one group: (1, H, L, D), ... -> (1, H, tokens of its completions, D)."""
    num_completions, length = span.own.shape
    begin = span.start + span.prefix_length
    prefix, completions = slice(span.start, begin), slice(begin, begin + len(span.kept))

    def own(states: torch.Tensor) -> torch.Tensor:  # (1, heads, L, D) -> (G, heads, C, D)
        spread: torch.Tensor = _Spread.apply(states[0, :, completions], span)
        return spread.view(len(spread), num_completions, length, -1).transpose(0, 1)

    query, own_key, own_value = (own(states) for states in (query, key, value))
    keys, values = (key[:, :, prefix], own_key), (value[:, :, prefix], own_value)
    if span.prefix_length and not dropout and gives_log_sums(query, value):
        output = merged_attention(query, own_key, own_value, keys[0], values[0], scaling)
    else:
        output = _masked_attention(span, query, keys, values, scaling, dropout)
    joined: torch.Tensor = _Collect.apply(output.transpose(0, 1).flatten(1, 2), span)
    return joined[None]


def _masked_attention(
    span: GroupSpan,
    query: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    values: tuple[torch.Tensor, torch.Tensor],
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """The same as one call with a mask, for kernels that give no log-sums: (G, H, C, D)."""
    number, num_heads, length, _ = query.shape
    key, value = (
        torch.cat([shared.expand(number, -1, -1, -1), own], dim=2) for shared, own in (keys, values)
    )
    # Query heads that share a head of keys stand one below the other: keys are not repeated.
    repeats = num_heads // key.size(1)
    output = scaled_dot_product_attention(
        query.reshape(number, key.size(1), repeats * length, -1),
        key,
        value,
        attn_mask=span.mask.repeat(repeats, 1),
        dropout_p=dropout,
        scale=scaling,
    )
    return output.reshape(number, num_heads, length, -1)


def _spread(states: torch.Tensor, span: GroupSpan) -> torch.Tensor:
    return states.index_select(1, span.own.flatten())


def _collect(states: torch.Tensor, span: GroupSpan) -> torch.Tensor:
    return states.index_select(1, span.kept)


class _Spread(torch.autograd.Function):
    """Tokens of a row, (heads, tokens, D) -> (heads, G * C, D), filled up.

    Nobody reads what a filling gave, so backward is a gather, and not a sum over repeated places.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, span: GroupSpan) -> torch.Tensor:
        """The filling repeats some token."""
        ctx.span = span
        return _spread(states, span)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Of the tokens alone."""
        return _collect(gradients[0], ctx.span), None


class _Collect(torch.autograd.Function):
    """The way back, (heads, G * C, D) -> (heads, tokens, D), without the filling."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, span: GroupSpan) -> torch.Tensor:
        """The tokens in the order of the row."""
        ctx.span = span
        return _collect(states, span)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Zero for the filling."""
        return _spread(gradients[0], ctx.span) * ctx.span.is_token, None
