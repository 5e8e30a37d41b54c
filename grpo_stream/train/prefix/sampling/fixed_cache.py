"""A prompt's cache as that of its completions, with room for their tokens: nothing grows or moves.

Forked families keep what their layers need in caches of transformers (5.23). For a call of one
token of each completion those are made anew with shapes that stay: keys and values with slots for
the tokens to come, states of convolutions and linear attention overwritten in place. Masks are the
model's own: it asks the cache how many slots there are, and where they begin, for each kind of
layer.

Shapes: G completions, K heads of keys and values, D width of a head, S slots of a layer: those of
the prompt that its window keeps, then one for each token of a completion.
"""

from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from grpo_stream.train.prefix.forked_cache import own_class, repeated_layer

_FIRST_ROOM = 64
_ALIGNMENT = 16  # slots


class FixedLayer(CacheLayerMixin):
    """Keys and values of one layer that attends, whether to all tokens or to a window of them.

    Args:
        layer: What has been kept of the prompt.
        size: G.
        seen: int64, a number: the tokens before the one that is computed.
        num_tokens: The prompt's.
    """

    is_compileable = True

    def __init__(self, layer: Any, size: int, seen: torch.Tensor, num_tokens: int) -> None:
        super().__init__()
        self.is_sliding = layer.is_sliding
        self.is_initialized = True
        self.window = layer.sliding_window if layer.is_sliding else None
        self.seen = seen
        self.num_kept = layer.keys.size(2)
        self.offset = torch.full_like(seen, num_tokens - self.num_kept)
        # Of one type: autocast would turn all keys over for every token.
        self.values = layer.values.repeat(size, 1, 1, 1)
        self.keys = layer.keys.to(self.values.dtype).repeat(size, 1, 1, 1)

    def widen(self, num_slots: int) -> None:
        """To so many slots; what is in the new ones is not seen."""
        behind = (0, 0, 0, num_slots - self.keys.size(2))
        self.keys, self.values = pad(self.keys, behind), pad(self.values, behind)

    def lazy_initialization(self, *_: Any) -> None:
        """Nothing: it begins with a prompt."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes a token of each completion; the same call again writes the same.

        Args:
            key_states: Shape (G, K, 1, D).
            value_states: The same shape.

        Returns:
            All keys and values, shape (G, K, S, D).
        """
        slot = (self.seen - self.offset).view(1)
        self.keys.index_copy_(2, slot, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, slot, value_states.to(self.values.dtype))
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> Any:  # noqa: ARG002 - transformers' signature
        """Slots, and the position of the token in the first of them."""
        return self.keys.size(2), self.offset

    def get_seq_length(self) -> Any:
        """The tokens before, as a tensor: as a number of Python it would be one of the graph's."""
        return self.seen

    def get_max_length(self) -> int:
        """Slots."""
        return int(self.keys.size(2))


class FixedCache(Cache):
    """The cache of a rollout of one prompt, for one token of each completion a call.

    Args:
        past: The prompt's without its last token; stays as it is.
        size: G.
        most: Tokens of the longest completion that is possible.
    """

    def __init__(self, past: Any, size: int, most: int) -> None:
        num_tokens = int(past.get_seq_length())
        attending = [layer for layer in past.layers if isinstance(layer, DynamicLayer)]
        self.seen = torch.full((), num_tokens, device=attending[0].keys.device)
        self._room, self._used, self._most = 0, 0, most

        def fixed(layer: Any) -> Any:
            if isinstance(layer, DynamicLayer):
                return FixedLayer(layer, size, self.seen, num_tokens)
            rows = repeated_layer(layer, size, is_written=True)
            rows.__class__ = own_class(layer)
            return rows

        super().__init__(layers=[fixed(layer) for layer in past.layers])
        self._grow(min(most, _FIRST_ROOM))

    @property
    def _attending(self) -> list[FixedLayer]:
        return [layer for layer in self.layers if isinstance(layer, FixedLayer)]

    def inputs(self) -> dict[str, Any]:
        """Of the model's call."""
        return {"past_key_values": self}

    def sized(self) -> list[tuple[torch.Tensor, int]]:
        """Slots are as many as the prompt needs."""
        return [(states, 2) for layer in self._attending for states in (layer.keys, layer.values)]

    def states(self) -> list[torch.Tensor]:
        """Those of fixed size."""
        return [
            state
            for layer in self.layers
            if isinstance(layer, LinearAttentionLayer)
            for state in (*layer.conv_states.values(), *layer.recurrent_states.values())
            if state is not None
        ]

    def advance(self) -> bool:
        """Goes on to the next token; whether that took tensors of a larger size."""
        self.seen += 1
        self._used += 1
        has_grown = self._used == self._room
        if has_grown:
            # Doubled: most completions end early, and all slots are paid for by every token.
            self._grow(max(1, min(self._room, self._most - self._room)))
        return has_grown

    def _grow(self, num_tokens: int) -> None:
        self._room += num_tokens
        widths: dict[Any, int] = {}
        for layer in self._attending:
            kind = layer.window
            if kind not in widths:
                width = -(-(layer.num_kept + self._room) // _ALIGNMENT) * _ALIGNMENT
                # Sizes that are equal once would be one symbol of the graph, and later two.
                while width in widths.values():
                    width += _ALIGNMENT
                widths[kind] = width
            layer.widen(widths[kind])


def fixed_obstacle(past: Any) -> str | None:
    """Why a cache cannot be given shapes that stay; None where it can.

    Args:
        past: A prompt's, of :func:`grpo_stream.train.prefix.forked_cache.new_cache`.
    """
    kinds = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer, LinearAttentionLayer)
    names = {own_class(one).__name__ for one in past.layers if own_class(one) not in kinds}
    if names:
        return f"not known to keep its shapes: {', '.join(sorted(names))}, of the model's cache"
    return None
