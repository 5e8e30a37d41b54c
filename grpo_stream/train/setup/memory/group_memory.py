"""What a group's tokens take in a model's layers: counted, not derived from formulas.

The layers are run on PyTorch's meta device, which knows shapes and no values, and what autograd
would keep is added up. So it holds for any family whose layers run there; attention alone, whose
kernels a device chooses, is stood in for by what those of transformers' ``sdpa`` keep.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from grpo_stream.errors import ConfigError
from grpo_stream.train.prefix.forked_cache import new_cache, repeated
from grpo_stream.train.prefix.ways import ways_to_try
from grpo_stream.train.setup.memory.model_sizes import MetaModel

_COUNTED = "counted"
_DTYPES = {2: torch.bfloat16, 4: torch.float32}
_CANNOT_RUN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_NUM_PATCHES = 64  # that a block is run with; what it keeps grows with them


@dataclass(frozen=True)
class Batch:
    """What a rank samples and scores."""

    prompt_tokens: int = 1300
    """P."""
    image_tokens: int = 1280
    """V_i, of them, of all images of a prompt."""
    completion_tokens: int = 64
    """C, all as long as they may be."""
    num_generations: int = 8
    """G."""
    groups_per_micro_step: int = 1
    """Prompts of a micro-step: per_device_train_batch_size / G."""
    prompts_per_rollout: int = 4
    """Of one rank: per_device_train_batch_size * steps_per_generation / G."""
    images_per_prompt: int = 1
    """What counts is their tokens, but in families whose tower sees each image at one size."""


@dataclass(frozen=True)
class GroupMemory:
    """Bytes of one group."""

    layout: str
    """``packed``: the prompt once, completions behind it; ``forked``: the prompt once, completions
    in G rows; ``plain``: G rows of both."""
    layers: tuple[int, ...]
    """What each layer of the text model keeps for backward; all of them twice in forked groups,
    for the prompt and for the completions."""
    blocks: tuple[int, ...]
    """What each block of the vision tower keeps."""
    layer_inputs: tuple[int, ...]
    """What remains of each under gradient checkpointing; of a forked prompt its cache, too."""
    block_input: int
    """What remains of a block."""
    cache: int
    """Of sampling: keys and values, or other states, of the prompt and all completions."""
    prefill: int
    """At the widest place of computing the prompt: four of the widest tensor, four of the input."""


@functools.lru_cache(maxsize=64)
def group_memory(model: MetaModel, batch: Batch, element_bytes: int) -> GroupMemory:
    """Counts one group of ``batch``, whatever its numbers of groups.

    Args:
        model: Whose layers are run; from then on it is in the given precision.
        batch: Lengths, and the number of completions.
        element_bytes: e, of a weight or activation: 2 or 4.

    Raises:
        ConfigError: its layers do not run without values.
    """
    layout = expected_layout(model.config)
    prompt, completion, size = batch.prompt_tokens, batch.completion_tokens, batch.num_generations
    copies = size if layout == "plain" else 1  # of the prompt
    model.module.to(_DTYPES[element_bytes]).train()
    try:
        passes = _passes(model, batch, layout)
        caches = [(1, prompt), (size, completion)]  # sampled from a forked prompt's cache as plain
        caches = caches if layout == "packed" else [(size, prompt + completion)]
        cache = sum(_cache_bytes(model, *rows) for rows in caches)
        # Under gradient checkpointing a forked prompt's cache remains of each layer, too.
        kept_cache = _cache_bytes(model, 1, prompt) if layout == "forked" else 0
    except _CANNOT_RUN as error:
        reason = str(error).strip().partition("\n")[0]
        expected = f"has layers that cannot be run without values ({reason})"
        raise ConfigError("model", model.config.model_type, expected) from error
    hidden = element_bytes * model.head.size(1)
    width = _width(model.blocks[0]) if model.blocks else 0
    patches = copies * _num_patches(model.config, batch)
    tokens, counter = passes[0]
    # A block that cannot be run alone keeps as much for its width as a layer does.
    kept = _block_bytes(model) or counter.sizes[0] * width // (tokens * model.head.size(1))
    inputs = [hidden * own for own, _ in passes]
    inputs[0] += kept_cache // len(model.layers)
    return GroupMemory(
        layout=layout,
        layers=tuple(kept_bytes for _, one in passes for kept_bytes in one.sizes),
        blocks=(patches * kept,) * len(model.blocks),
        layer_inputs=tuple(own for own in inputs for _ in model.layers),
        block_input=element_bytes * width * patches,
        cache=cache,
        prefill=4 * copies * prompt * (counter.widest // tokens + hidden),
    )


def expected_layout(config: Any) -> str:
    """``packed``, ``forked`` or ``plain``: what a model takes unless it fails its proof."""
    (first, *_), _ = ways_to_try(
        config, "auto", attention="sdpa", packed_attention="two_part", pad_token_id=0
    )
    return first.name


def _passes(model: MetaModel, batch: Batch, layout: str) -> list[tuple[int, "_Counter"]]:
    """Number of tokens, and what is kept, of the forwards that score a group."""
    prompt, completion, size = batch.prompt_tokens, batch.completion_tokens, batch.num_generations

    def counted(attention: _Attention, rows: int, length: int, past: Any = None) -> Any:
        run = functools.partial(_decode, model, rows, length, past=past)
        return rows * length, _counted(model, model.layers, attention, run)

    if layout == "packed":
        return [counted(_Attention(batch), 1, prompt - 1 + size * completion)]
    if layout == "plain":
        return [counted(_Attention(), size, prompt + completion)]
    past = new_cache(model.config)
    first = counted(_Attention(repeats_keys=False), 1, prompt - 1, past)
    return [first, counted(_Attention(), size, completion, repeated(past, size))]


class _Counter:
    """Adds up what autograd keeps while each of some layers runs, weights apart."""

    def __init__(self, layers: Sequence[nn.Module], attention: "_Attention") -> None:
        self.sizes = [0] * len(layers)
        """Bytes, a layer."""
        self.widest = 0
        """Bytes of the largest tensor."""
        self._layers = layers
        self._attention = attention
        self._weights = {p.untyped_storage() for layer in layers for p in layer.parameters()}
        self._found: set[torch.UntypedStorage] | None = None

    def run(self, forward: Callable[[], Any]) -> None:
        """Counts in one call of ``forward``, which calls each layer once."""
        handles = []
        for number, layer in enumerate(self._layers):
            handles.append(layer.register_forward_pre_hook(self._begin))
            handles.append(layer.register_forward_hook(functools.partial(self._end, number)))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                forward()
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, *_: Any) -> None:
        self._found, self._attention.num_copied_bytes = set(), 0

    def _end(self, number: int, *_: Any) -> None:
        sizes = [storage.nbytes() for storage in self._found or ()]
        self.sizes[number] = sum(sizes) + self._attention.num_copied_bytes
        self.widest = max(self.widest, *sizes)
        self._found = None

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if self._found is not None and storage not in self._weights:
            self._found.add(storage)  # the same object whichever tensor asks, while it is in here
        return tensor


class _Attention:
    """Stands in for attention; called as transformers' ``AttentionInterface``.

    Args:
        packed: Lengths of the packed groups that attend; None for rows of their own.
        repeats_keys: A mask is given, for which transformers makes keys for each head of queries.
    """

    def __init__(self, packed: Batch | None = None, *, repeats_keys: bool = True) -> None:
        self.packed = packed
        self.repeats_keys = repeats_keys and packed is None
        self.num_copied_bytes = 0
        """What the two parts of packed attention (``prefix/log_sums.py``) keep besides: queries,
        keys and values of the completions, and the parts' outputs with a log-sum each."""

    def __call__(
        self,
        _module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        """Shapes are (rows, heads, tokens, head size), then (rows, tokens, heads, head size)."""
        repeats = query.size(1) // key.size(1)
        if self.repeats_keys and repeats > 1:
            key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
        if self.packed is not None:
            own = self.packed.num_generations * self.packed.completion_tokens
            queries, keys = (states[0, :, 0].numel() for states in (query, key))
            copied = queries * (own + query.size(2)) + 2 * keys * own
            self.num_copied_bytes = query.element_size() * copied + 4 * query.size(1) * own
        output: torch.Tensor = _KeepingAttention.apply(query, key, value)
        return output, None


class _KeepingAttention(torch.autograd.Function):
    """Keeps its inputs, its output and a sum for each softmax; computes nothing."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """See the class."""
        rows, num_heads, length, _ = query.shape
        output = query.new_empty(rows, length, num_heads, value.size(-1))
        sums = query.new_empty(rows, num_heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output


def _counted(
    model: MetaModel, layers: Sequence[nn.Module], attention: _Attention, forward: Callable[[], Any]
) -> _Counter:
    AttentionInterface.register(_COUNTED, attention)
    AttentionMaskInterface.register(_COUNTED, lambda *_, **__: None)
    model.module.set_attn_implementation(_COUNTED)
    counter = _Counter(layers, attention)
    counter.run(forward)
    return counter


def _decode(
    model: MetaModel, rows: int, length: int, *, past: Any = None, use_cache: bool = False
) -> Any:
    """Runs the text model; with positions and mask given, it does not look for them in values."""
    seen = 0 if past is None else past.get_seq_length()
    with torch.device("meta"):
        return model.decoder(
            input_ids=torch.zeros(rows, length, dtype=torch.long),
            position_ids=torch.arange(length)[None],
            attention_mask=torch.ones(1, 1, length, seen + length, dtype=torch.bool),
            past_key_values=past,
            use_cache=use_cache or past is not None,
        )


def _cache_bytes(model: MetaModel, rows: int, length: int) -> int:
    """Of all states of all layers' caches, whatever their classes name them."""
    with torch.no_grad():
        cache = _decode(model, rows, length, use_cache=True).past_key_values
    states = (value for layer in cache.layers for value in vars(layer).values())
    flat = (
        one for value in states for one in (value.values() if isinstance(value, dict) else [value])
    )
    return sum(one.nbytes for one in flat if isinstance(one, torch.Tensor) and one.dim() > 1)


def _block_bytes(model: MetaModel) -> int:
    """What a block of the vision tower keeps of a patch; 0 where there is none to be run alone."""
    if not model.blocks:
        return 0
    block = model.blocks[0]
    takes = inspect.signature(block.forward).parameters
    in_one_row = "cu_seqlens" in takes  # all images' patches, with the places where one ends
    shape = (_NUM_PATCHES, _width(block)) if in_one_row else (1, _NUM_PATCHES, _width(block))
    head_sizes: list[Any] = [getattr(part, "head_dim", None) for part in block.modules()]
    head_size = next(filter(None, head_sizes), 1)
    angles = torch.empty(_NUM_PATCHES, head_size, device="meta")
    known = {
        "attention_mask": None,
        "cu_seqlens": torch.tensor([0, _NUM_PATCHES]),
        "position_embeddings": (angles, angles),
    }
    given = {name: value for name, value in known.items() if name in takes}
    patches = torch.empty(*shape, device="meta", dtype=model.module.dtype, requires_grad=True)
    try:
        counter = _counted(model, [block], _Attention(), lambda: block(patches, **given))
    except _CANNOT_RUN:
        return 0
    return counter.sizes[0] // _NUM_PATCHES


def _width(block: nn.Module) -> int:
    """Numbers of a patch: what the first matrix of a block takes."""
    return next(part for part in block.modules() if isinstance(part, nn.Linear)).in_features


def _num_patches(config: Any, batch: Batch) -> int:
    """Patches of a prompt: by its tokens where they are merged, else the tower's own number."""
    tower = config.vision_config
    merged = getattr(tower, "spatial_merge_size", getattr(config, "spatial_merge_size", None))
    if merged is not None:
        return int(batch.image_tokens * merged**2)
    image, patch = (getattr(tower, name, None) for name in ("image_size", "patch_size"))
    if image is None or patch is None:
        return batch.image_tokens
    image, patch = (side if isinstance(side, int) else side[0] for side in (image, patch))
    return batch.images_per_prompt * int((image // patch) ** 2)
