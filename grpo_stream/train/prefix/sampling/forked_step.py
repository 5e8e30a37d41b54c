"""One token of each completion of a forked group: static shapes, one call of the model."""

from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.base_model import base_model
from grpo_stream.train.prefix.forked_cache import repeated
from grpo_stream.train.prefix.sampling.decoder import EAGER, Decoder
from grpo_stream.train.prefix.sampling.fixed_cache import FixedCache, fixed_obstacle
from grpo_stream.train.prefix.sampling.generation import sample_tokens
from grpo_stream.train.prefix.sampling.token_attention import token_attention


class ForkedStep:
    """The state of a group's completions between two tokens: a row each.

    Args:
        model: Unwrapped; LoRA may be around it.
        group: One prompt.
        past: Its cache, without its last token; stays as it is.
        positions: int64, shape (G, 1) or (3, G, 1): of its last token.
        most: Tokens of the longest completion that is possible.
        decoder: What calls the model.
    """

    def __init__(
        self,
        model: Any,
        group: PromptGroups,
        past: Any,
        positions: torch.Tensor,
        most: int,
        decoder: Decoder,
    ) -> None:
        self._model, self._decoder = model, decoder
        self._cache = FixedCache(past, group.num_rows, most)
        # What each completion computes first is the prompt's last token.
        self._tokens = group.prompt_ids[0][-1:].repeat(group.num_rows, 1)
        self._positions = positions.clone()
        self._bind()

    def logits(self) -> torch.Tensor:
        """Of each completion's next token: float32, shape (G, vocabulary)."""
        return self._logits().flatten(0, 1).float()

    def advance(self, tokens: torch.Tensor) -> None:
        """Goes on behind the sampled tokens.

        Args:
            tokens: int64, shape (G,).
        """
        self._tokens.copy_(tokens.view_as(self._tokens))
        self._positions += 1
        if self._cache.advance():
            self._bind()

    def _bind(self) -> None:
        self._logits = self._decoder.bind(self._model, self._tokens, self._positions, self._cache)


def sample_in_place(
    model: Any, group: PromptGroups, past: Any, generation_config: Any, decoder: Decoder
) -> torch.Tensor | None:
    """Samples one prompt's completions behind its cache, by calls that a graph can be made of.

    Args:
        model: Unwrapped; LoRA may be around it.
        group: One prompt.
        past: Its cache, without its last token; stays as it is.
        generation_config: transformers' options of sampling, end tokens and length.
        decoder: What computes a token; is eager from now on where that is not possible.

    Returns:
        int64, shape (G, longest completion), padded behind the end; None where the decoder is eager
        and nothing has been sampled.
    """
    positions = _positions(model, group)
    (ids,) = group.prompt_ids
    rows = ids.expand(group.num_rows, -1).contiguous()
    with token_attention(model):
        if not _is_possible(model, group, past, positions, decoder):
            return None
        sequences: torch.Tensor = model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            past_key_values=DynamicCache(),
            generation_config=generation_config,
            custom_generate=sample_tokens,
            begin=partial(ForkedStep, model, group, past, positions, decoder=decoder),
        )
    return sequences[:, len(ids) :]


def _positions(model: Any, group: PromptGroups) -> torch.Tensor:
    """Of the prompt's last token, shape (G, 1), or (3, G, 1) with M-RoPE.

    A model of the Qwen-VL kind has kept what positions are behind the number of tokens, and would
    continue by that (transformers 5.23, ``Qwen2_5_VLModel.compute_3d_position_ids``), on the host.
    """
    (ids,), backbone = group.prompt_ids, base_model(model).base_model
    positions = ids.new_full((group.num_rows, 1), len(ids) - 1)
    if not hasattr(backbone, "rope_deltas"):
        return positions
    positions = positions.expand(3, -1, -1)
    deltas = backbone.rope_deltas
    return positions.clone() if deltas is None else positions + deltas.to(ids.device)


def _is_possible(
    model: Any, group: PromptGroups, past: Any, positions: torch.Tensor, decoder: Decoder
) -> bool:
    """Whether a call of one token can be made of static shapes.

    At a run's start its logits are compared with those of the model's own way to continue a cache,
    without positions and with a cache that grows.
    """
    if any(weight.numel() == 0 for weight in model.parameters()):
        decoder.fall_back("weights are partitioned")
    elif (obstacle := fixed_obstacle(past)) is not None:
        decoder.fall_back(obstacle)
    elif decoder.is_unchecked:
        expected = _continued(model, group, past)
        step = ForkedStep(model, group, past, positions, 1, EAGER)
        try:
            found = step.logits().view_as(expected)
        except Exception as error:  # noqa: BLE001 - a model's code may raise anything
            decoder.fall_back(f"{type(error).__name__}: {error}")
        else:
            decoder.accepts(found, expected, "those of a cache that grows")
    return decoder.is_compiled


def _continued(model: Any, group: PromptGroups, past: Any) -> torch.Tensor:
    """Logits of the first token, shape (G, 1, vocabulary), as the model continues a cache."""
    tokens = group.prompt_ids[0][-1:].repeat(group.num_rows, 1)
    own = repeated(past, group.num_rows, is_written=True)
    logits: torch.Tensor = model(input_ids=tokens, past_key_values=own, use_cache=True).logits
    return logits
