"""Sampling completions: the prompt is computed once, whatever the number of completions."""

from typing import Any

import torch
from transformers import DynamicCache

from grpo_stream.families import VISION_TOKENS
from grpo_stream.train.batches.groups import PromptGroups, pad_left
from grpo_stream.train.prefix.attention import (
    PrefixCache,
    prefixes_alone,
    use_shared_prefix_attention,
)
from grpo_stream.train.prefix.backbone import backbone_of, image_kwargs, prompt_positions
from grpo_stream.train.prefix.spare_image import tower_is_called


def suppressed_token_ids(tokenizer: Any) -> list[int]:
    """Ids of the families' vision tokens, for ``GenerationConfig.suppress_tokens``."""
    known = tokenizer.get_vocab()
    return sorted(known[token] for token in VISION_TOKENS if token in known)


def generate_groups(
    model: Any, groups: PromptGroups, generation_config: Any, pad_token_id: int
) -> torch.Tensor:
    """Samples each prompt's completions from one prefill.

    The prompts without their last tokens are run once. Their keys and values stay as they are, one
    set per prompt, and every completion attends to them and to its own (:class:`PrefixCache`).
    Settings, logits processors and stopping criteria are those of ``generate``, whose loop
    :func:`_sample` takes the place of (transformers 5.23, ``custom_generate``).

    Args:
        model: An unwrapped Qwen2.5-VL, or LoRA around it. Its text model keeps the attention of
            :func:`grpo_stream.train.prefix.attention.use_shared_prefix_attention`.
        groups: The prompts; all must have the same number of completions.
        generation_config: transformers' options of sampling, end tokens and length.
        pad_token_id: Fills shorter prompts up on the left.

    Returns:
        int64, shape (completions of all prompts, longest completion), padded behind the end.
    """
    use_shared_prefix_attention(model)
    (num_generations,) = set(groups.sizes)
    ids = pad_left(groups.prompt_ids, pad_token_id)
    attention_mask = pad_left([torch.ones_like(row) for row in groups.prompt_ids], 0)
    positions = prompt_positions(backbone_of(model), groups)
    with torch.no_grad():
        prefix = _prefill(model, groups, positions)
        # Position of the first token that each completion computes: the prompt's last one.
        openings = torch.stack([own[:, -1:] for own in positions], dim=1)
        openings = openings.repeat_interleave(num_generations, dim=1)
        sequences = model.generate(
            input_ids=ids.repeat_interleave(num_generations, dim=0),
            attention_mask=attention_mask.repeat_interleave(num_generations, dim=0),
            position_ids=openings,
            past_key_values=DynamicCache(),
            generation_config=generation_config,
            custom_generate=_sample,
            prefix=prefix,
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


def _prefill(model: Any, groups: PromptGroups, positions: list[torch.Tensor]) -> PrefixCache:
    """Runs the prompts without their last tokens once, one behind the other in one row.

    So no mask is needed, and no padding is computed.
    """
    prefixes = [ids[:-1] for ids in groups.prompt_ids]
    lengths = [len(one) for one in prefixes]
    with tower_is_called(model, groups):
        cache = model(
            input_ids=torch.cat(prefixes)[None],
            position_ids=torch.cat([own[:, :-1] for own in positions], dim=1)[:, None],
            shared_prefix=prefixes_alone(lengths, prefixes[0].device),
            use_cache=True,
            logits_to_keep=1,
            **image_kwargs(groups),
        ).past_key_values

    def by_prompt(states: torch.Tensor) -> torch.Tensor:  # (1, K, L, D) -> (prompts, K, P, D)
        rows = [one.transpose(0, 1) for one in states[0].split(lengths, dim=1)]
        return pad_left(rows, 0).transpose(1, 2)

    return PrefixCache(
        keys=[by_prompt(layer.keys).float() for layer in cache.layers],
        values=[by_prompt(layer.values) for layer in cache.layers],
        is_padding=pad_left([torch.zeros_like(one) for one in prefixes], 1).bool(),
    )


def _sample(
    model: Any,
    input_ids: torch.Tensor,
    *,
    prefix: PrefixCache,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Samples token by token: a loop for ``generate``'s argument ``custom_generate``.

    Args:
        model: The model that ``generate`` was called for.
        input_ids: The prompts, shape (completions, prompt length).
        prefix: Their keys and values without the last token, one set per prompt.
        logits_processor: What ``generate`` has made of its settings.
        stopping_criteria: The same; ends each completion by itself.
        generation_config: The settings.
        **model_kwargs: ``position_ids`` of each prompt's last token, shape (3, completions, 1), and
            the empty cache ``past_key_values``; the others are of no use here.

    Returns:
        Prompts and completions, shape (completions, prompt length + longest completion).
    """
    positions, cache = model_kwargs["position_ids"], model_kwargs["past_key_values"]
    num_prompt_tokens = length = input_ids.size(1)
    room = generation_config.max_length - length
    pad_token_id = generation_config.pad_token_id
    sequences = torch.nn.functional.pad(input_ids, (0, room), value=pad_token_id)
    is_open = torch.ones(len(sequences), dtype=torch.bool, device=sequences.device)
    # ZeRO-3 leaves partitioned weights empty: all ranks must call the model equally often.
    is_partitioned = any(parameter.numel() == 0 for parameter in model.parameters())
    while _is_any_open(is_open, on_all_ranks=is_partitioned):
        logits = model(
            input_ids=sequences[:, length - 1 : length],
            position_ids=positions + (length - num_prompt_tokens),
            past_key_values=cache,
            shared_prefix=prefix,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if not is_open.any():
            continue
        scores = logits_processor(sequences[:, :length], logits.float())
        if generation_config.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
        else:
            tokens = scores.argmax(dim=-1)
        sequences[:, length] = tokens.where(is_open, pad_token_id)
        length += 1
        is_open &= ~stopping_criteria(sequences[:, :length], scores)
    return sequences[:, :length]


def _is_any_open(is_open: torch.Tensor, *, on_all_ranks: bool) -> bool:
    num_open = is_open.sum()
    if on_all_ranks:
        torch.distributed.all_reduce(num_open)
    return bool(num_open)
