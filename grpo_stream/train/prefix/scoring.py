"""Log-probabilities of completions, pass by pass, in the way that the run's groups are computed."""

from typing import Any

import torch

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.prefix.router_balance import RouterRecord
from grpo_stream.train.prefix.ways import PrefixWay

LogProbs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Log-probabilities, entropies where they are asked for, and an auxiliary loss of
a mixture of experts where that is."""


class GroupScorer:
    """Scores the completions of groups; the policy's, the old policy's or the reference model's.

    Args:
        accelerator: accelerate's, ready.
        phases: Stopwatch of this rank.
    """

    def __init__(self, accelerator: Any, phases: Phases) -> None:
        self._accelerator = accelerator
        self._phases = phases

    def score(
        self,
        way: PrefixWay,
        model: Any,
        groups: PromptGroups,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        *,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> LogProbs:
        """Log-probabilities and entropies, shape (completions, longest completion).

        Args:
            way: How the groups are computed.
            model: What scores.
            groups: The prompts of all rows.
            input_ids: int64, shape (completions, prompt and completion), as trl pads them.
            attention_mask: The same shape.
            logits_to_keep: Longest completion.
            batch_size: Completions per pass; None: all.
            compute_entropy: Whether entropies are asked for.
            compute_aux_loss: Whether the balancing loss of a mixture of experts is; of several
                passes it is the mean, as in trl.
            **_: What else trl passes: images, which the groups have.
        """
        completion_ids = input_ids[:, -logits_to_keep:]
        completion_mask = attention_mask[:, -logits_to_keep:]
        step = min(batch_size or len(input_ids), len(input_ids))
        log_probs, entropies, losses = [], [], []
        for start in range(0, len(input_ids), step):
            rows = slice(start, min(start + step, len(input_ids)))
            router = RouterRecord(model) if compute_aux_loss else None
            with (
                self._phases("update" if torch.is_grad_enabled() else "scoring"),
                self._accelerator.autocast(),
            ):
                found, entropy = way.score(
                    model,
                    groups.rows(rows.start, rows.stop),
                    completion_ids[rows],
                    completion_mask[rows],
                    compute_entropy=compute_entropy,
                    router=router,
                )
                if router is not None:
                    losses.append(router.loss())
            log_probs.append(found)
            entropies.append(entropy)
        entropy = torch.cat([e for e in entropies if e is not None]) if compute_entropy else None
        return torch.cat(log_probs), entropy, torch.stack(losses).mean() if losses else None
