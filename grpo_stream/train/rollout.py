"""Sampling completions: the prompt is computed once, whatever the number of completions."""

from typing import Any

import torch

from grpo_stream.train.groups import PromptGroups

VISION_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
"""Never sampled: a completion with one of them would ask for an image that is not there."""


def suppressed_token_ids(tokenizer: Any) -> list[int]:
    """Ids of :data:`VISION_TOKENS`, for ``GenerationConfig.suppress_tokens``."""
    known = tokenizer.get_vocab()
    return sorted(known[token] for token in VISION_TOKENS if token in known)


def generate_groups(
    model: Any, groups: PromptGroups, generation_config: Any, pad_token_id: int
) -> torch.Tensor:
    """Samples each prompt's completions from one prefill.

    The prompts are run once with a cache. Its last position is dropped, since ``generate`` needs
    one token to start from, the cache is repeated for every completion, and ``generate`` goes on
    from there (transformers 5.23: ``Cache.crop``, ``Cache.batch_repeat_interleave``).

    Args:
        model: An unwrapped Qwen2.5-VL (or LoRA around it) whose weights can be read.
        groups: The prompts; all must have the same number of completions.
        generation_config: transformers' options of sampling, end tokens and length.
        pad_token_id: Fills shorter prompts up on the left.

    Returns:
        int64, shape (completions of all prompts, longest completion), padded behind the end.
    """
    (num_generations,) = set(groups.sizes)
    ids = _pad_left(groups.prompt_ids, pad_token_id)
    attention_mask = _pad_left([torch.ones_like(row) for row in groups.prompt_ids], 0)
    with torch.no_grad():
        cache = model(
            input_ids=ids,
            attention_mask=attention_mask,
            mm_token_type_ids=_pad_left(groups.mm_token_type_ids, 0),
            pixel_values=groups.pixel_values,
            image_grid_thw=groups.image_grid_thw,
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        cache.crop(-1)
        cache.batch_repeat_interleave(num_generations)
        backbone = backbone_of(model)
        # The prefill left each prompt's offset between tokens and positions; generate reads it.
        backbone.rope_deltas = backbone.rope_deltas.repeat_interleave(num_generations, dim=0)
        sequences = model.generate(
            input_ids=ids.repeat_interleave(num_generations, dim=0),
            attention_mask=attention_mask.repeat_interleave(num_generations, dim=0),
            past_key_values=cache,
            generation_config=generation_config,
        )
    completions: torch.Tensor = sequences[:, ids.size(1) :]
    return completions


def trim_completions(completion_ids: torch.Tensor, eos_token_ids: list[int]) -> list[list[int]]:
    """Cuts each row behind its first end token.

    Args:
        completion_ids: int64, shape (completions, longest).
        eos_token_ids: Tokens that end a completion; the first one met is kept.
    """
    is_end = torch.isin(completion_ids, torch.tensor(eos_token_ids, device=completion_ids.device))
    length = completion_ids.size(1)
    ends = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, length).tolist()
    return [row[:end] for row, end in zip(completion_ids.tolist(), ends, strict=True)]


def backbone_of(model: Any) -> Any:
    """The module below the language-model head, through LoRA where there is some."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    return base.model


def _pad_left(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=value, padding_side="left"
    )
