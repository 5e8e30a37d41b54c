"""The forked prefix: a prompt's cache, with gradients, from which all its completions continue.

The prompt without its last token is run once; what the text layers keep of it (keys and values,
states of linear attention and convolutions, whatever the model has) is repeated for the G
completions, which are run as a batch behind it, each opened by the prompt's last token. So it takes
any model that can generate with a cache. Positions restart by the model's own rule for continuing a
cache, images belong to the prompt alone, and the gradient flows back through the cache.

Groups are run one after another: no padding between prompts, which some models do not take rightly,
and it was the faster way, too (docs/shared_prefix.md).

Shapes: P tokens of a prompt, G completions of one group, C longest of them.
"""

from typing import Any

import torch

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.base_model import base_model, unwrapped
from grpo_stream.train.prefix.backbone import accepted_media
from grpo_stream.train.prefix.forked_cache import checkpointing_keeps_cache, new_cache, repeated
from grpo_stream.train.prefix.router_balance import RouterRecord, kept_in
from grpo_stream.train.prefix.sampling.decoder import EAGER, Decoder
from grpo_stream.train.prefix.sampling.forked_step import sample_in_place
from grpo_stream.train.prefix.spare_image import tower_is_called

_IGNORED = -100
# A call with one token is taken for a step of generation, and overwrites the state of convolutions.
_MIN_TOKENS = 2


def score_forked(
    model: Any,
    group: PromptGroups,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    compute_entropy: bool,
    router: RouterRecord | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (and entropies) of one group's completions, by two forwards.

    Args:
        model: The policy or reference, wrapped or not, with trl's fused head (trl 1.16,
            ``add_fused_lm_head``).
        group: One prompt.
        completion_ids: int64, shape (G, C), padded on the right.
        completion_mask: int or bool, the same shape.
        compute_entropy: Whether entropies are wanted.
        router: Where router logits are kept, if they are wanted. The completions' last tokens are
            computed then, too, which predict nothing.

    Returns:
        Two float tensors of shape (G, C), 0 where the mask is; the second may be None.

    Raises:
        RuntimeError: the model keeps no cache of its prompt.
    """
    (ids,), length = group.prompt_ids, completion_ids.size(1)
    missing = (0, max(0, _MIN_TOKENS - length) + (router is not None))
    completion_ids = torch.nn.functional.pad(completion_ids, missing)
    completion_mask = torch.nn.functional.pad(completion_mask, missing)
    with checkpointing_keeps_cache(model):
        past = _prefill(model, group, len(completion_ids), router)
        tail = torch.cat([ids[-1:].expand(len(completion_ids), 1), completion_ids[:, :-1]], dim=1)
        is_token = torch.cat([torch.ones_like(completion_mask[:, :1]), completion_mask[:, :-1]], 1)
        # No mask, positions or images: the model continues its cache as it does in generation.
        with kept_in(router, is_token) as asked:
            output = model(
                input_ids=tail,
                past_key_values=repeated(past, len(tail)),
                shift_labels=completion_ids.masked_fill(completion_mask == 0, _IGNORED),
                fused_lm_head=True,
                **_types(group, torch.zeros_like(tail)),
                **asked,
            )
    entropy = output.entropy[:, :length] if compute_entropy else None
    return output.log_probs[:, :length], entropy


def sample_forked(
    model: Any, group: PromptGroups, generation_config: Any, decoder: Decoder = EAGER
) -> torch.Tensor:
    """Samples one prompt's completions from one prefill.

    Args:
        model: Unwrapped; LoRA may be around it.
        group: One prompt.
        generation_config: transformers' options of sampling, end tokens and length.
        decoder: What computes a token; where it is eager, the model's own ``generate`` does.

    Returns:
        int64, shape (G, longest completion), padded behind the end.
    """
    (ids,), (size,) = group.prompt_ids, group.sizes
    with torch.no_grad():
        past = _prefill(model, group)
        if decoder.is_compiled:
            found = sample_in_place(model, group, past, generation_config, decoder)
            if found is not None:
                return found
        rows = ids.expand(size, -1).contiguous()
        sequences: torch.Tensor = model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            past_key_values=repeated(past, size, is_written=True),
            generation_config=generation_config,
        )
    return sequences[:, len(ids) :]


def _prefill(
    model: Any, group: PromptGroups, size: int = 1, router: RouterRecord | None = None
) -> Any:
    """The cache of one prompt without its last token, which counts for ``size`` completions."""
    ids = group.prompt_ids[0][None, :-1]
    past = new_cache(unwrapped(model).config)
    if not group.has_images:
        _forget_positions(model)
    count = torch.full_like(ids, size)
    with kept_in(router, count) as asked, tower_is_called(model, group):
        model(
            input_ids=ids,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
            **accepted_media(model, group.media[0]),
            **_types(group, group.mm_token_type_ids[0][None, :-1]),
            **asked,
        )
    if past.get_seq_length() != ids.size(1):
        raise RuntimeError(
            f"the model has kept {past.get_seq_length()} of a prompt's {ids.size(1)} tokens in "
            "its cache"
        )
    return past


def _forget_positions(model: Any) -> None:
    """Drops what a model of the Qwen-VL kind has kept of the positions of the prompt before.

    It continues a cache by that (transformers 5.23, ``Qwen2_5_VLModel.compute_3d_position_ids``),
    and a prompt without images leaves it as it is.
    """
    backbone = base_model(model).base_model
    if hasattr(backbone, "rope_deltas"):
        backbone.rope_deltas = None


def _types(group: PromptGroups, types: torch.Tensor) -> dict[str, torch.Tensor]:
    return {} if group.types_name is None else {group.types_name: types}
