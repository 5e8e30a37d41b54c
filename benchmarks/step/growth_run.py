"""The two ways of ``benchmarks growth``: a packed group, and a row for each completion."""

from pathlib import Path
from typing import Any

import torch
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.prefix.attention import use_shared_prefix_attention
from grpo_stream.train.prefix.backbone import image_kwargs, prompt_positions
from grpo_stream.train.prefix.packing import pack_groups, score_packed

_NUM_WORDS = 16  # of a prompt; all other tokens are of the image
_MERGED = 2  # patches along each side of a token


class Contestants:
    """Both ways, over the same weights.

    Args:
        folder: The policy.
        attention: How packed groups attend.
    """

    def __init__(self, folder: Path, attention: str) -> None:
        self._model = load_policy(folder, dtype=torch.float32, attn_implementation="sdpa")
        add_fused_lm_head(self._model, outputs=("log_probs", "entropy"))
        use_shared_prefix_attention(self._model)  # plain sdpa where nothing is shared
        self._attention = attention

    def group(self, size: int, num_prompt_tokens: int, num_tokens: int) -> tuple[Any, Any]:
        """A group of ``size`` completions of ``num_tokens`` tokens, and their tokens.

        Its image is one token high.
        """
        generator = torch.Generator().manual_seed(0)
        num_image_tokens = num_prompt_tokens - _NUM_WORDS
        config = self._model.config
        vocabulary = config.text_config.vocab_size
        words = torch.randint(20, vocabulary, (_NUM_WORDS,), generator=generator)
        image = torch.full((num_image_tokens,), config.image_token_id)
        features = torch.randn(
            1, num_image_tokens, config.text_config.hidden_size, generator=generator
        )
        groups = PromptGroups(
            prompt_ids=[torch.cat([words[:4], image, words[4:]])],
            mm_token_type_ids=[(torch.arange(num_prompt_tokens) - 4 < num_image_tokens).long()],
            media=[{"image_grid_thw": torch.tensor([[1, _MERGED, _MERGED * num_image_tokens]])}],
            sizes=[size],
            image_features=(features,),
        )
        groups.mm_token_type_ids[0][:4] = 0
        return groups, torch.randint(20, vocabulary, (size, num_tokens), generator=generator)

    def ours(self, groups: PromptGroups, completions: torch.Tensor) -> torch.Tensor:
        """Log-probabilities, after backward."""
        positions = prompt_positions(self._model.model, groups)
        mask = torch.ones_like(completions)
        packed = pack_groups(groups, completions, mask, positions, 0, self._attention)
        log_probs, _ = score_packed(self._model, packed, groups, mask, compute_entropy=True)
        return self._differentiate(log_probs)

    def trl(self, groups: PromptGroups, completions: torch.Tensor) -> torch.Tensor:
        """The same as ``GRPOTrainer._get_per_token_logps_and_entropies`` (trl 1.16) calls it."""
        size, num_tokens = completions.shape
        (prompt,) = groups.prompt_ids
        ids = torch.cat([prompt.expand(size, -1), completions], dim=1)
        labels = ids.clone()
        labels[:, :-num_tokens] = -100
        images = image_kwargs(groups)
        encoded = images["mm_encoder_outputs"]["image"]
        encoded.pooler_output = encoded.pooler_output * size
        log_probs = self._model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=groups.token_types(len(prompt), num_tokens),
            image_grid_thw=groups.media[0]["image_grid_thw"].expand(size, -1),
            labels=labels,
            fused_lm_head=True,
            **images,
        ).log_probs
        return self._differentiate(log_probs[:, -num_tokens:])

    def _differentiate(self, log_probs: torch.Tensor) -> torch.Tensor:
        self._model.zero_grad(set_to_none=True)
        torch.autograd.backward(log_probs.sum())
        return log_probs.detach()
