"""Evaluation while supervised training runs: loss over all records, and answers that hit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.models.utils import unwrap_model_for_generation

from grpo_stream.grounding.image_sizes import sizes_of
from grpo_stream.grounding.scores import score_answer
from grpo_stream.targets import IMAGES_FIELD, WANTED_FIELD
from grpo_stream.train.batches.collate import IGNORED_LABEL, Batch
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.evaluate.policy_texts import generate_texts, greedy_config

_NOT_SCORED = -1
ACCURACY = "eval_point_accuracy"
"""Logged: the share of records whose greedy answer points into the box, of those it applies to."""


@dataclass
class Losses:
    """Sums of this rank's losses so far."""

    total: float = 0.0
    num_tokens: int = 0

    def add(self, mean_loss: torch.Tensor, num_tokens: int) -> None:
        """Adds the mean over ``num_tokens`` tokens."""
        self.total += float(mean_loss) * num_tokens
        self.num_tokens += num_tokens

    def mean(self, accelerator: Any) -> float:
        """Over the tokens of all ranks; every rank must ask."""
        sums = torch.tensor([[self.total, float(self.num_tokens)]], device=accelerator.device)
        total, num_tokens = accelerator.gather(sums).sum(dim=0).tolist()
        return float(total / max(num_tokens, 1.0))


def without_repeats(batch: Batch, rank: int) -> Iterator[Batch]:
    """The micro-batches of an evaluation batch; what other ranks have as well is not scored.

    Args:
        batch: Of one rank. ``num_prompts`` says how many records count over all ranks; they come
            first, rank after rank (:mod:`grpo_stream.train.batches.eval_batches`).
        rank: This one; all have equally many records.
    """
    first = rank * len(batch["key"])
    for micro_batch in batch["micro_batches"]:
        num_counted = max(0, batch["num_prompts"] - first)
        first += len(micro_batch["sizes"])
        labels = micro_batch["tail_labels"].clone()
        labels[num_counted:] = IGNORED_LABEL
        kept = labels[micro_batch["tail_mask"].bool()]
        yield micro_batch | {"tail_labels": labels, "labels": kept, "shift_labels": kept}


def share_of_hits(
    model: Any, batches: Iterable[Batch], tokenizer: Any, accelerator: Any, max_length: int
) -> float:
    """Share of all records whose greedy answer points into the box; every rank must call this.

    Args:
        model: As it is trained; under ZeRO-3 its weights are gathered for the whole of it.
        batches: Of an evaluation.
        tokenizer: The model's.
        accelerator: accelerate's, ready.
        max_length: Tokens of an answer at most.
    """
    hits: list[int] = []
    with unwrap_model_for_generation(model, accelerator) as policy:
        config = greedy_config(policy, tokenizer, max_length)
        for batch in batches:
            own: list[int] = []
            for part in batch["micro_batches"]:
                own += _hits(policy, part, tokenizer, config)
            everyone = accelerator.gather(torch.tensor(own, device=accelerator.device))
            hits += everyone.tolist()[: batch["num_prompts"]]
    scored = [hit for hit in hits if hit != _NOT_SCORED]
    return sum(scored) / len(scored) if scored else 0.0


def _hits(model: Any, part: Batch, tokenizer: Any, config: Any) -> list[int]:
    prompts = PromptGroups.from_batch(part, 1, next(model.parameters()).device)
    texts = generate_texts(model, tokenizer, prompts, config)
    hits = []
    for number, text in enumerate(texts):
        answer = score_answer(
            text,
            part["solution"][number],
            key=part["key"][number],
            prompt="",
            scales=sizes_of(part["scales"][number]),
            model_size=sizes_of(part["model_size"][number]),
            answer_frame=part["answer_frame"][number],
            wanted=part["extra"][number].get(WANTED_FIELD),
            solution_images=part["extra"][number].get(IMAGES_FIELD),
        )
        hits.append(_NOT_SCORED if answer.is_hit is None else int(answer.is_hit))
    return hits


class StopAtAccuracy(TrainerCallback):
    """Ends a run whose answers are good enough, and looks more often once they nearly are.

    Args:
        stop_accuracy: Of :data:`ACCURACY`.
    """

    def __init__(self, stop_accuracy: float) -> None:
        self.stop_accuracy = stop_accuracy
        self._last = 0.0

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Overrides ``TrainerCallback.on_evaluate`` (transformers 5.23)."""
        self._last = (metrics or {}).get(ACCURACY, 0.0)
        if self._last >= self.stop_accuracy:
            control.should_training_stop = True

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Overrides ``TrainerCallback.on_step_end`` (transformers 5.23).

        Accuracy rises within a few updates once words and places have met: from half of the wanted
        one on, a third of the usual interval.
        """
        is_close = self._last >= self.stop_accuracy / 2
        if is_close and state.global_step % max(1, state.eval_steps // 3) == 0:
            control.should_evaluate = True
