"""Log-probabilities of completions, pass by pass: from packed groups, or as trl computes them."""

from collections.abc import Callable
from typing import Any

import torch

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.prefix.backbone import backbone_of, prompt_positions
from grpo_stream.train.prefix.packing import pack_groups, score_packed

LogProbs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Log-probabilities, entropies where they are asked for, and an auxiliary loss, which is None."""


class GroupScorer:
    """Scores the completions of groups; the policy's, the old policy's or the reference model's.

    Args:
        accelerator: accelerate's, ready.
        phases: Stopwatch of this rank.
        pad_token_id: Fills packed rows up.
        attention: How a packed group attends: ``two_part``, ``dense`` or ``flex``; None: groups
            are not packed, trl's own way is taken, with the images repeated per completion.
    """

    def __init__(
        self, accelerator: Any, phases: Phases, *, pad_token_id: int, attention: str | None
    ) -> None:
        self._accelerator = accelerator
        self._phases = phases
        self._pad_token_id = pad_token_id
        self._attention = attention

    def score(
        self,
        upstream: Callable[..., LogProbs],
        model: Any,
        groups: PromptGroups,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        *,
        compute_entropy: bool = False,
        **_: Any,
    ) -> LogProbs:
        """Log-probabilities and entropies, shape (completions, longest completion).

        Args:
            upstream: trl's ``_get_per_token_logps_and_entropies``.
            model: What scores.
            groups: The prompts of all rows.
            input_ids: int64, shape (completions, prompt and completion), as trl pads them.
            attention_mask: The same shape.
            logits_to_keep: Longest completion.
            batch_size: Completions per pass; None: all.
            compute_entropy: Whether entropies are asked for.
            **_: What else trl passes: images, which the groups have, and what is refused.
        """
        step = min(batch_size or len(input_ids), len(input_ids))
        log_probs, entropies = [], []
        for start in range(0, len(input_ids), step):
            rows = slice(start, min(start + step, len(input_ids)))
            tensors = (groups.rows(rows.start, rows.stop), input_ids[rows], attention_mask[rows])
            with self._phases("update" if torch.is_grad_enabled() else "scoring"):
                if self._attention is None:
                    scored = _score_plain(
                        upstream, model, *tensors, logits_to_keep, compute_entropy=compute_entropy
                    )
                else:
                    scored = self._score_packed(
                        model, *tensors, logits_to_keep, compute_entropy=compute_entropy
                    )
            log_probs.append(scored[0])
            entropies.append(scored[1])
        entropy = torch.cat([e for e in entropies if e is not None]) if compute_entropy else None
        return torch.cat(log_probs), entropy, None

    def _score_packed(
        self,
        model: Any,
        groups: PromptGroups,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *,
        compute_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        completion_mask = attention_mask[:, -logits_to_keep:]
        packed = pack_groups(
            groups,
            input_ids[:, -logits_to_keep:],
            completion_mask,
            prompt_positions(backbone_of(self._accelerator.unwrap_model(model)), groups),
            self._pad_token_id,
            self._attention or "",
        )
        with self._accelerator.autocast():
            return score_packed(
                model, packed, groups, completion_mask, compute_entropy=compute_entropy
            )


def _score_plain(
    upstream: Callable[..., LogProbs],
    model: Any,
    groups: PromptGroups,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    logits_to_keep: int,
    *,
    compute_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    log_probs, entropies, _ = upstream(
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        compute_entropy=compute_entropy,
        num_images=[1] * groups.num_rows,
        **groups.model_inputs(input_ids.size(1) - logits_to_keep, logits_to_keep),
    )
    return log_probs, entropies
