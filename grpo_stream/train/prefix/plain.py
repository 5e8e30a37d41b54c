"""The plain layout: every completion behind its own copy of the prompt and its images, as in trl.

What the two shared ways are measured by, and what is taken where neither gives its numbers. Unlike
trl, groups are run one after another, so that no prompt is padded.
"""

from typing import Any

import torch

from grpo_stream.families import PREFIX_LMS
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.base_model import base_model
from grpo_stream.train.prefix.backbone import accepted_media
from grpo_stream.train.prefix.router_balance import RouterRecord, kept_in
from grpo_stream.train.prefix.spare_image import tower_is_called

_IGNORED = -100
# Tensors whose images are joined along another dimension than the first (transformers 5.23).
_LAST_DIM = {"minicpmv4_6": "pixel_values", "minicpmv4_7": "pixel_values"}


def score_plain(
    model: Any,
    group: PromptGroups,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    compute_entropy: bool,
    router: RouterRecord | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (and entropies) of one group's completions, by one ordinary forward.

    Args:
        model: The policy or reference, wrapped or not, with trl's fused head (trl 1.16,
            ``add_fused_lm_head``).
        group: One prompt.
        completion_ids: int64, shape (G, C), padded on the right.
        completion_mask: int or bool, the same shape.
        compute_entropy: Whether entropies are wanted.
        router: Where router logits are kept, if they are wanted.

    Returns:
        Two float tensors of shape (G, C), 0 where the mask is; the second may be None.
    """
    size, length = completion_ids.shape
    prompt = group.prompt_ids[0].expand(size, -1)
    mask = torch.cat([torch.ones_like(prompt), completion_mask.to(prompt.dtype)], dim=1)
    labels = completion_ids.masked_fill(completion_mask == 0, _IGNORED)
    with kept_in(router, mask) as asked, tower_is_called(model, group):
        output = model(
            input_ids=torch.cat([prompt, completion_ids], dim=1),
            attention_mask=mask,
            labels=torch.cat([torch.full_like(prompt, _IGNORED), labels], dim=1),
            fused_lm_head=True,
            **plain_inputs(model, group, size, length),
            **asked,
        )
    entropy = output.entropy[:, -length:] if compute_entropy else None
    return output.log_probs[:, -length:], entropy


def sample_plain(
    model: Any,
    group: PromptGroups,
    generation_config: Any,
    _decoder: object = None,
) -> torch.Tensor:
    """Samples one prompt's completions by the model's own ``generate``, a prompt for each.

    Args:
        model: Unwrapped; LoRA may be around it.
        group: One prompt.
        generation_config: transformers' options of sampling, end tokens and length.

    Returns:
        int64, shape (G, longest completion), padded behind the end.
    """
    (ids,), (size,) = group.prompt_ids, group.sizes
    rows = ids.expand(size, -1).contiguous()
    with torch.no_grad(), tower_is_called(model, group):
        sequences: torch.Tensor = model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            generation_config=generation_config,
            **plain_inputs(model, group, size, 0),
        )
    return sequences[:, len(ids) :]


def plain_inputs(model: Any, group: PromptGroups, size: int, length: int) -> dict[str, Any]:
    """What a model takes besides tokens for ``size`` copies of a prompt, completions behind them.

    Args:
        model: Wrapped or not.
        group: One prompt.
        size: Copies.
        length: Of the longest completion, in tokens; they hold no images.
    """
    last_dim = _LAST_DIM.get(base_model(model).config.model_type)

    def repeat(name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value * size
        if name == last_dim:
            return value.repeat(*[1] * (value.dim() - 1), size)
        return value.repeat(size, *[1] * (value.dim() - 1))

    media = accepted_media(model, group.media[0])
    inputs = {name: repeat(name, value) for name, value in media.items()}
    if group.types_name is not None:
        behind = int(base_model(model).config.model_type in PREFIX_LMS)
        types = torch.nn.functional.pad(group.mm_token_type_ids[0], (0, length), value=behind)
        inputs[group.types_name] = types.expand(size, -1)
    return inputs
