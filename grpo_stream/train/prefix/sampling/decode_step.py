"""One token of each completion of a rollout: static shapes, one call of the model."""

from collections import deque
from typing import Any

import torch
from transformers import DynamicCache

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.prefix.attention import prefixes_alone
from grpo_stream.train.prefix.backbone import backbone_of, image_kwargs, prompt_positions
from grpo_stream.train.prefix.sampling.decoder import Decoder
from grpo_stream.train.prefix.sampling.group_cache import GroupCache
from grpo_stream.train.prefix.spare_image import tower_is_called

# How many tokens ago a device is asked for, so that it is never waited for. A CPU is never ahead.
_TOKENS_BEHIND = {"cpu": 0}
_BEHIND_ELSEWHERE = 2


class DecodeStep:
    """The state of a rollout's completions between two tokens.

    Each prompt's completions are the tokens of one row (:class:`GroupCache`).

    Args:
        model: Unwrapped; LoRA may be around it.
        groups: The prompts; all must have the same number of completions.
        most: Tokens of the longest completion that is possible.
        decoder: What calls the model.
    """

    def __init__(self, model: Any, groups: PromptGroups, most: int, decoder: Decoder) -> None:
        positions = prompt_positions(backbone_of(model), groups)
        number = groups.sizes[0]
        self._model, self._decoder = model, decoder
        self._cache = prefill(model, groups, positions, most)
        # What each completion computes first is the prompt's last token.
        last = torch.stack([ids[-1:] for ids in groups.prompt_ids])
        self._tokens = last.repeat(1, number)
        openings = torch.stack([own[:, -1:] for own in positions], dim=1)
        self._positions = openings.repeat(1, 1, number)
        self._bind()

    def logits(self) -> torch.Tensor:
        """Of each completion's next token: float32, shape (completions, vocabulary)."""
        return self._logits().flatten(0, 1).float()

    def advance(self, tokens: torch.Tensor) -> None:
        """Goes on behind the sampled tokens.

        Args:
            tokens: int64, shape (completions,).
        """
        self._tokens.copy_(tokens.view_as(self._tokens))
        self._positions += 1
        if self._cache.advance():
            self._bind()

    def _bind(self) -> None:
        self._logits = self._decoder.bind(self._model, self._tokens, self._positions, self._cache)


class StopCheck:
    """Whether completions are open; on a GPU, as they were two tokens ago, without waiting for it.

    What is sampled behind the last end is padding. It is always as much, so random numbers are used
    alike in each run.
    """

    def __init__(self, device: torch.device) -> None:
        self._behind = _TOKENS_BEHIND.get(device.type, _BEHIND_ELSEWHERE)
        self._flags: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()

    def is_any_open(self, is_open: torch.Tensor) -> bool:
        """To be asked once for each token.

        Args:
            is_open: bool, shape (completions,).
        """
        flag, copied = is_open.any(), None
        if flag.is_cuda:
            flag, copied = flag.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
        self._flags.append((flag, copied))
        if len(self._flags) <= self._behind:
            return True
        flag, copied = self._flags.popleft()
        if copied is not None:
            copied.synchronize()
        return bool(flag)


def prefill(
    model: Any, groups: PromptGroups, positions: list[torch.Tensor], most: int
) -> GroupCache:
    """Runs the prompts without their last tokens once, one behind the other in one row.

    So no mask is needed, and no padding is computed.

    Args:
        model: Unwrapped; LoRA may be around it.
        groups: The prompts.
        positions: Of each prompt, shape (3, prompt length).
        most: Tokens of the longest completion that is possible.
    """
    prefixes = [ids[:-1] for ids in groups.prompt_ids]
    lengths = [len(one) for one in prefixes]
    # Not the one that the model returns: accelerate's wrapper turns that into float32.
    cache = DynamicCache()
    with tower_is_called(model, groups):
        model(
            input_ids=torch.cat(prefixes)[None],
            position_ids=torch.cat([own[:, :-1] for own in positions], dim=1)[:, None],
            past_key_values=cache,
            shared_prefix=prefixes_alone(lengths, prefixes[0].device),
            use_cache=True,
            logits_to_keep=1,
            **image_kwargs(groups),
        )
    num_heads = backbone_of(model).config.get_text_config().num_attention_heads
    return GroupCache.from_prefill(cache.layers, lengths, groups.sizes[0], num_heads, most)
