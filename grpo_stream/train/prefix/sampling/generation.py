"""Sampling completions: the prompt is computed once, whatever the number of completions."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from grpo_stream.families import VISION_TOKENS
from grpo_stream.train.batches.groups import PromptGroups, pad_left
from grpo_stream.train.prefix.attention import use_shared_prefix_attention
from grpo_stream.train.prefix.sampling.decode_step import DecodeStep, StopCheck
from grpo_stream.train.prefix.sampling.decoder import EAGER, Decoder


class TokenStep(Protocol):
    """The state of completions between two tokens."""

    def logits(self) -> torch.Tensor:
        """Of each completion's next token: float32, shape (completions, vocabulary)."""
        ...

    def advance(self, tokens: torch.Tensor) -> None:
        """Goes on behind the sampled tokens, int64 of shape (completions,)."""
        ...


def suppressed_token_ids(tokenizer: Any) -> list[int]:
    """Ids of the families' vision tokens, for ``GenerationConfig.suppress_tokens``."""
    known = tokenizer.get_vocab()
    return sorted(known[token] for token in VISION_TOKENS if token in known)


def generate_groups(
    model: Any,
    groups: PromptGroups,
    generation_config: Any,
    pad_token_id: int,
    decoder: Decoder = EAGER,
) -> torch.Tensor:
    """Samples each prompt's completions from one prefill.

    The prompts without their last tokens are run once. Their keys and values are kept once per
    prompt, and every completion attends to them and to its own
    (:mod:`grpo_stream.train.prefix.sampling.group_cache`). Settings, logits processors and stopping
    criteria are those of ``generate``, whose loop :func:`sample_tokens` takes the place of
    (transformers 5.23, ``custom_generate``).

    Args:
        model: An unwrapped Qwen2.5-VL, or LoRA around it. Its text model keeps the attention of
            :func:`grpo_stream.train.prefix.attention.use_shared_prefix_attention`.
        groups: The prompts; all must have the same number of completions.
        generation_config: transformers' options of sampling, end tokens and length.
        pad_token_id: Fills shorter prompts up on the left.
        decoder: What computes a token.

    Returns:
        int64, shape (completions of all prompts, longest completion), padded behind the end.
    """
    use_shared_prefix_attention(model)
    ids = pad_left(groups.prompt_ids, pad_token_id)
    attention_mask = pad_left([torch.ones_like(row) for row in groups.prompt_ids], 0)
    (num_generations,) = set(groups.sizes)
    with torch.no_grad():
        sequences = model.generate(
            input_ids=ids.repeat_interleave(num_generations, dim=0),
            attention_mask=attention_mask.repeat_interleave(num_generations, dim=0),
            past_key_values=DynamicCache(),
            generation_config=generation_config,
            custom_generate=sample_tokens,
            # ``generate`` of LoRA calls that of the model inside.
            begin=partial(DecodeStep, model, groups, decoder=decoder),
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


def sample_tokens(
    model: Any,
    input_ids: torch.Tensor,
    *,
    begin: Callable[[int], TokenStep],
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **_: Any,
) -> torch.Tensor:
    """Samples token by token: a loop for ``generate``'s argument ``custom_generate``.

    Args:
        model: The model that ``generate`` was called for.
        input_ids: The prompts, shape (completions, prompt length).
        begin: Runs their prefixes, for completions of so many tokens.
        logits_processor: What ``generate`` has made of its settings.
        stopping_criteria: The same; ends each completion by itself.
        generation_config: The settings.

    Returns:
        Prompts and completions, shape (completions, prompt length + longest completion).
    """
    length = input_ids.size(1)
    room = generation_config.max_length - length
    pad_token_id = generation_config.pad_token_id
    sequences = torch.nn.functional.pad(input_ids, (0, room), value=pad_token_id)
    is_open = torch.ones(len(sequences), dtype=torch.bool, device=sequences.device)
    lengths = torch.full((len(sequences),), length, device=sequences.device)
    # ZeRO-3 leaves partitioned weights empty: all ranks must call the model equally often.
    is_partitioned = any(parameter.numel() == 0 for parameter in model.parameters())
    check = StopCheck(sequences.device)
    step = begin(room)
    while _is_open_anywhere(is_open) if is_partitioned else check.is_any_open(is_open):
        logits = step.logits()
        if is_partitioned and not is_open.any():
            continue
        scores = logits_processor(sequences[:, :length], logits)
        if generation_config.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
        else:
            tokens = scores.argmax(dim=-1)
        tokens = tokens.where(is_open, pad_token_id)
        sequences[:, length] = tokens
        length += 1
        lengths += is_open
        is_open &= ~stopping_criteria(sequences[:, :length], scores)
        if length == sequences.size(1) and not is_partitioned:
            break
        step.advance(tokens)
    return sequences[:, : int(lengths.max())]


def _is_open_anywhere(is_open: torch.Tensor) -> bool:
    num_open = is_open.sum()
    torch.distributed.all_reduce(num_open)
    return bool(num_open)
