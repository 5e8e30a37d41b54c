"""A prompt's cache with gradients: made once, continued by each completion, kept by checkpointing.

transformers (5.23) makes its caches for generation. Three things are added, each by a general rule
and none by a list of model families: states that are replaced instead of overwritten, so that
backward finds what forward has used; a cache that is repeated for a batch of completions; and
gradient checkpointing that recomputes a layer with the cache as the layer has found it, where
transformers takes the cache away.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.modeling_layers import GradientCheckpointingLayer

_CACHE_NAMES = ("past_key_values", "cache_params")
# The one tensor whose second dimension is the batch (``DynamicIndexedLayer``, transformers 5.23).
_BATCH_SECOND = frozenset({"indexer_position_ids"})


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model's text layers, none of which overwrites a tensor.

    Args:
        config: The model's configuration.
    """
    made = DynamicCache(config=config)
    for layer in made.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            own: Any = type(layer)
            layer.__class__ = _replacing(own)
    return made


def own_class(layer: Any) -> Any:
    """The class in transformers of a layer of :func:`new_cache`, which overwrites its tensors."""
    kind = type(layer)
    return kind.__base__ if isinstance(layer, _Replacing) else kind


def snapshot(past: Any) -> Any:
    """The same tensors in containers of its own: an update of one does not reach the other."""
    taken = copy(past)
    taken.layers = [_copied(layer) for layer in past.layers]
    return taken


def _copied(layer: Any) -> Any:
    taken = copy(layer)
    for name, value in vars(taken).items():
        if isinstance(value, (dict, list)):
            setattr(taken, name, copy(value))
    return taken


def repeated(past: Any, size: int, *, is_written: bool = False) -> Any:
    """A cache of one prompt as that of ``size`` rows; every tensor of every layer.

    Args:
        past: Of one row; stays as it is.
        size: Rows.
        is_written: The rows will be overwritten, as in generation: each gets memory of its own,
            where otherwise all read the same.
    """
    taken = copy(past)
    taken.layers = [repeated_layer(one, size, is_written=is_written) for one in past.layers]
    return taken


def repeated_layer(layer: Any, size: int, *, is_written: bool) -> Any:
    """:func:`repeated` of one layer.

    Args:
        layer: Of one row; stays as it is.
        size: Rows.
        is_written: The rows will be overwritten.
    """

    def rows(value: Any, dim: int) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() < 2:
            return value
        if is_written:
            return value.repeat_interleave(size, dim)
        shape = [-1] * value.dim()
        shape[dim] = size
        return value.expand(shape)

    taken = _copied(layer)
    for name, value in vars(taken).items():
        dim = int(name in _BATCH_SECOND)
        if isinstance(value, dict):
            setattr(taken, name, {key: rows(one, dim) for key, one in value.items()})
        elif isinstance(value, list):
            setattr(taken, name, [rows(one, dim) for one in value])
        else:
            setattr(taken, name, rows(value, dim))
    return taken


@contextmanager
def checkpointing_keeps_cache(model: torch.nn.Module) -> Iterator[None]:
    """Within it, layers under gradient checkpointing keep the cache that they are called with.

    Replaces for that time what ``GradientCheckpointingLayer`` (transformers 5.23) calls. Backward
    may come later: a layer that is recomputed has been given all that it needs.

    Args:
        model: Wrapped or not.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
    names = ("_can_checkpoint_with_cache", "_gradient_checkpointing_func")
    upstream = [[getattr(layer, name) for name in names] for layer in layers]
    for layer in layers:
        layer._can_checkpoint_with_cache = True  # noqa: SLF001
        layer._gradient_checkpointing_func = _checkpoint_with_cache  # noqa: SLF001
    try:
        yield
    finally:
        for layer, values in zip(layers, upstream, strict=True):
            for name, value in zip(names, values, strict=True):
                setattr(layer, name, value)


def _checkpoint_with_cache(function: Any, *args: Any, **_: Any) -> Any:
    """In the place of ``torch.utils.checkpoint`` for ``function``, a layer with its keywords.

    Reentrant checkpointing would cut the graph: keys and values leave the layer by the cache and
    not as its result.
    """
    given = dict(function.keywords)
    name = next((name for name in _CACHE_NAMES if given.get(name) is not None), None)
    if name is None:
        return checkpoint(function, *args, use_reentrant=False)
    # Not kept for longer than the first run: it will hold what all layers have put into it.
    first = [given.pop(name)]
    found = snapshot(first[0])
    layer = partial(function.func, *function.args)

    def run(*own: Any) -> Any:
        past = first.pop() if first else snapshot(found)
        return layer(*own, **given, **{name: past})

    return checkpoint(run, *args, use_reentrant=False)


class _Replacing:
    """Puts new tensors in place of old ones."""


@cache
def _replacing(layer_class: Any) -> Any:
    """The class of a layer with states of fixed size, which puts new tensors in place of old ones.

    Without ``_layer_type``: with one, a class enters itself into transformers' table of layers.
    """

    class Replacing(layer_class, _Replacing):
        _layer_type = None
        update_conv_state: Callable[..., torch.Tensor] = _replace_conv_state
        update_recurrent_state: Callable[..., torch.Tensor] = _replace_recurrent_state

    return Replacing


def _replace_conv_state(
    self: Any,
    conv_states: torch.Tensor,
    state_idx: int = 0,
    conv_kernel_size: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """As ``LinearAttentionLayer.update_conv_state`` (transformers 5.23), out of place."""
    if not self.is_conv_states_initialized[state_idx]:
        self.dtype, self.device = conv_states.dtype, conv_states.device
        size = conv_kernel_size or conv_states.shape[-1]
        self.conv_kernel_size = {**self.conv_kernel_size, state_idx: size}
        self.is_conv_states_initialized = {**self.is_conv_states_initialized, state_idx: True}
    size = self.conv_kernel_size[state_idx]
    if self.has_previous_state[state_idx]:
        seen = torch.cat([self.conv_states[state_idx], conv_states], dim=-1)
    else:
        self.has_previous_state = {**self.has_previous_state, state_idx: True}
        seen = torch.nn.functional.pad(conv_states, (max(0, size - conv_states.shape[-1]), 0))
    self.conv_states = {**self.conv_states, state_idx: seen[..., -size:]}
    return seen


def _replace_recurrent_state(
    self: Any, recurrent_states: torch.Tensor, state_idx: int = 0, **_: Any
) -> torch.Tensor:
    """As ``LinearAttentionLayer.update_recurrent_state`` (transformers 5.23), out of place."""
    self.recurrent_states = {**self.recurrent_states, state_idx: recurrent_states}
    self.is_recurrent_states_initialized = {
        **self.is_recurrent_states_initialized,
        state_idx: True,
    }
    return recurrent_states
