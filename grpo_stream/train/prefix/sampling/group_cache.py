"""Keys and values of a rollout: each prefix once, and the completions' tokens written in place.

While it is sampled, a group is one row of G tokens, the next one of each of its completions. Their
keys are written behind the prefix, and one call of attention per layer reads all of them: its mask
lets a completion see the prefix and its own tokens. So nothing is copied for each completion,
nothing grows from token to token, and a step has the shapes of the one before it.

Products are of float32 at least, as the kernels have it that score: rounded to bfloat16, large ones
would make another policy of it, and float16 would overflow.

Shapes: B prompts, G completions of each, H heads of queries, K heads of keys and values, D width of
a head, S slots: those of the longest prefix, then G for each token of the completions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from grpo_stream.train.batches.groups import pad_left

_FIRST_ROOM = 64
# Whose kernel with a mask reads a head of keys once for all its query heads, which torch's for CUDA
# does not: there, query heads stand one below the other.
_SHARES_HEADS = frozenset({"cpu"})
_ALIGNMENT = 16  # slots; kernels of CUDA copy a mask of other widths for each call


@dataclass(eq=False)
class GroupCache:
    """In the place of transformers' cache (5.23), for one token of each completion a call.

    It is ``past_key_values`` and ``shared_prefix`` of the call, ``mask`` its ``attention_mask``.
    """

    keys: list[torch.Tensor]
    """Per layer, shape (B, K, S, D)."""
    values: list[torch.Tensor]
    """The same shape; zeros where nothing is written."""
    mask: torch.Tensor
    """0 for what is seen and minus infinity, shape (B, 1, repeats * G, S), of the values' type."""
    slots: torch.Tensor
    """int64, shape (G,): where the next tokens are written."""
    next_slot: int
    """The first of them."""
    room: int
    """Tokens of a completion for which there are slots."""
    most: int
    """Tokens that a completion may have."""
    repeats: int
    """Query heads that stand one below the other: H / K, or 1 where the kernel shares heads."""

    @classmethod
    def from_prefill(
        cls,
        layers: Sequence[Any],
        lengths: Sequence[int],
        num_generations: int,
        num_heads: int,
        most: int,
    ) -> "GroupCache":
        """A cache of prefixes that were run one behind the other in one row.

        Args:
            layers: transformers' cache of that row, keys of shape (1, K, sum of ``lengths``, D).
            lengths: Of the prefixes, in tokens.
            num_generations: G.
            num_heads: H.
            most: Tokens of the longest completion that is possible.
        """
        before = -max(lengths) % _ALIGNMENT
        room = min(most, _FIRST_ROOM)
        behind = _width(num_generations * room)

        def by_prompt(states: torch.Tensor) -> torch.Tensor:  # (1, K, L, D) -> (B, K, S, D)
            rows = [one.transpose(0, 1) for one in states[0].split(list(lengths), dim=1)]
            return pad(pad_left(rows, 0).transpose(1, 2), (0, 0, before, behind))

        values = [by_prompt(layer.values) for layer in layers]
        # Of one type: autocast would turn all keys over for every token.
        keys = [by_prompt(layer.keys.to(values[0].dtype)) for layer in layers]
        device, repeats = values[0].device, num_heads // values[0].size(1)
        if device.type in _SHARES_HEADS:
            repeats = 1
        seen = pad_left([values[0].new_zeros(length) for length in lengths], -torch.inf)
        seen = pad(seen, (before, behind), value=-torch.inf)
        first = seen.size(1) - behind
        cache = cls(
            keys,
            values,
            seen[:, None, None].repeat(1, 1, repeats * num_generations, 1),
            torch.arange(first, first + num_generations, device=device),
            first,
            room,
            most,
            repeats,
        )
        cache._see_slots()
        return cache

    def inputs(self) -> dict[str, Any]:
        """Of the model's call."""
        return {"attention_mask": self.mask, "past_key_values": self, "shared_prefix": self}

    def sized(self) -> list[tuple[torch.Tensor, int]]:
        """Slots are as many as the prompts need."""
        return [(self.mask, 3), *((states, 2) for states in (*self.keys, *self.values))]

    def states(self) -> list[torch.Tensor]:
        """None: a token's keys are written to the same slots again."""
        return []

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the tokens of a call, as ``Cache.update`` (transformers 5.23).

        Args:
            key: Shape (B, K, G, D).
            value: The same shape.
            layer_idx: Index of the layer.

        Returns:
            All keys and values, shape (B, K, S, D).
        """
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys.index_copy_(2, self.slots, key.to(keys.dtype))
        values.index_copy_(2, self.slots, value.to(values.dtype))
        return keys, values

    def attend(
        self,
        _layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        _dropout: float,
    ) -> torch.Tensor:
        """Attention of the new tokens: (B, H, G, D), (B, K, S, D) twice -> (B, H, G, D).

        Keys are not repeated for the query heads that share them.
        """
        is_folded = self.repeats > 1
        rows = query.reshape(len(query), key.size(1), -1, query.size(3)) if is_folded else query
        output = scaled_dot_product_attention(
            rows, key, value, attn_mask=self.mask, scale=scaling, enable_gqa=not is_folded
        )
        return output.view(query.shape) if is_folded else output

    def advance(self) -> bool:
        """Goes on to the next token; whether that took tensors of a larger size.

        Room doubles: as many slots as the longest completion might take would be paid for by every
        token, and most completions end early.
        """
        num_generations = len(self.slots)
        self.slots += num_generations
        self.next_slot += num_generations
        own = self.keys[0].size(2) - self.next_slot
        has_grown = own < num_generations
        if has_grown:
            self._grow(min(self.room, self.most - self.room))
        self._see_slots()
        return has_grown

    def _see_slots(self) -> None:
        """Each completion sees its own new token, and no other."""
        number = len(self.slots)
        by_completion = self.mask.unflatten(2, (-1, number))
        new = by_completion[..., self.next_slot : self.next_slot + number]
        new.diagonal(dim1=-2, dim2=-1).zero_()

    def _grow(self, num_tokens: int) -> None:
        behind = _width(len(self.slots) * num_tokens)
        self.room += num_tokens
        self.mask = pad(self.mask, (0, behind), value=-torch.inf)
        for layers in (self.keys, self.values):
            layers[:] = [pad(own, (0, 0, 0, behind)) for own in layers]


def _width(num_slots: int) -> int:
    return -(-num_slots // _ALIGNMENT) * _ALIGNMENT
