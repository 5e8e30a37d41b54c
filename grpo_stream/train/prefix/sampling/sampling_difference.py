"""How far the policy that is sampled is from the one that is scored.

Sampling and scoring compute the same log-probabilities by different kernels and layouts, and the
gradient of GRPO is right only as far as they agree. trl (1.16) logs the difference where vLLM
samples; here it is measured for the project's own loops, under the same names, on a few rollouts:
what the sampling pass made of each token is kept while it samples, and one scoring pass more is
made of the completions, before any weight changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from trl import GRPOConfig
from trl.models.utils import disable_gradient_checkpointing

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.base_model import base_model
from grpo_stream.train.observe.metrics import RunMetrics
from grpo_stream.train.prefix.scoring import GroupScorer
from grpo_stream.train.prefix.ways import PrefixWay

# trl's names (1.16, ``GRPOTrainer._generate_and_score_completions``).
_MEAN = "sampling/sampling_logp_difference/mean"
_MAX = "sampling/sampling_logp_difference/max"


class Difference(NamedTuple):
    """Between log-probabilities of sampled tokens, over all ranks."""

    mean: float
    """Absolute."""
    max: float


class SamplingCheck:
    """Compares the sampling pass with a scoring pass, on the first rollout and now and then.

    Args:
        every: Global steps between two comparisons; 0: none.
        args: Of the run.
        accelerator: accelerate's, ready.
        scorer: Scores as training does.
        metrics: Of the run.
    """

    def __init__(
        self,
        every: int,
        args: GRPOConfig,
        accelerator: Any,
        scorer: GroupScorer,
        metrics: RunMetrics,
    ) -> None:
        self._every = every
        self._args = args
        self._accelerator = accelerator
        self._scorer = scorer
        self._metrics = metrics

    def is_due(self, train_step: int | None) -> bool:
        """Whether a rollout is compared: one in each ``every`` global steps, from step 0 on.

        It depends on the step alone: all ranks say the same, since each has to score and gather
        then, and a resumed run says what it would have said without a break.

        Args:
            train_step: Global steps done; None for the rollout of an evaluation.
        """
        micro_steps = self._args.steps_per_generation * self._args.num_iterations
        period = max(1, micro_steps // self._args.gradient_accumulation_steps)
        return self._every > 0 and train_step is not None and train_step % self._every < period

    @contextmanager
    def watching(self, model: Any, train_step: int | None) -> "Iterator[SampledLogProbs | None]":
        """Around the sampling; None where it is not compared.

        Args:
            model: The policy.
            train_step: See :meth:`is_due`.
        """
        if not self.is_due(train_step):
            yield None
            return
        with recorded(model, self._args.temperature) as sampled:
            yield sampled

    def log(
        self,
        sampled: "SampledLogProbs",
        way: PrefixWay,
        model: Any,
        groups: PromptGroups,
        completion_ids: torch.Tensor,
        rows: Sequence[Sequence[int]],
    ) -> None:
        """Scores completions as trl does, and logs how far that is from their sampling.

        Args:
            sampled: What :meth:`watching` gave.
            way: How groups are computed.
            model: The policy, wrapped or not, with the weights of the sampling.
            groups: The prompts.
            completion_ids: int64, shape (completions, longest), as they were sampled.
            rows: The same up to each one's end.
        """
        lengths = torch.tensor([len(row) for row in rows], device=completion_ids.device)
        places = torch.arange(completion_ids.size(1), device=completion_ids.device)
        is_token = places < lengths[:, None]
        unwrapped = self._accelerator.unwrap_model(model)
        kwargs = self._args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(unwrapped, kwargs):
            scored, _, _ = self._scorer.score(
                way,
                unwrapped,
                groups,
                completion_ids,
                is_token.long(),
                completion_ids.size(1),
                self._args.per_device_train_batch_size,
            )
        own = sampled.read(completion_ids)
        found = compare(own, scored, is_token, self._accelerator)
        self._metrics.log_metric("train", _MEAN, found.mean)
        self._metrics.log_metric("train", _MAX, found.max)


class SampledLogProbs:
    """Log-probabilities of tokens as they were sampled, for the calls of ``generate`` in turn."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def begin(self, temperature: float) -> LogitsProcessor:
        """What sees the logits of the next call of ``generate``, before any other processor."""
        self._calls.append(_Call(temperature))
        return self._calls[-1]

    def read(self, completion_ids: torch.Tensor) -> torch.Tensor:
        """Log-probabilities, float32, the shape of ``completion_ids``; any value behind an end.

        Args:
            completion_ids: int64, shape (completions of all calls, longest).
        """
        rows = completion_ids.split([call.num_rows for call in self._calls])
        return torch.cat([call.read(own) for call, own in zip(self._calls, rows, strict=True)])


class _Call(LogitsProcessor):
    """Changes nothing; keeps one number a token, and of the last step its whole distribution."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._found: list[torch.Tensor] = []
        self._last: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        return 0 if self._last is None else len(self._last)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._last is not None:
            self._found.append(self._of(input_ids[:, -1]))
        self._last = (scores.float() / self._temperature).log_softmax(dim=-1)
        return scores

    def read(self, completion_ids: torch.Tensor) -> torch.Tensor:
        found, longest = self._found, completion_ids.size(1)
        # On a GPU the loop learns of the last end late, and has seen more steps then.
        if len(found) < longest:
            found = [*found, self._of(completion_ids[:, len(found)])]
        kept = torch.stack(found[:longest], dim=1)
        return torch.nn.functional.pad(kept, (0, longest - kept.size(1)))

    def _of(self, tokens: torch.Tensor) -> torch.Tensor:
        assert self._last is not None  # noqa: S101 - generate has called
        return self._last.gather(1, tokens[:, None])[:, 0]


@contextmanager
def recorded(model: Any, temperature: float) -> Iterator[SampledLogProbs]:
    """Keeps log-probabilities of what ``model.generate`` samples meanwhile.

    The model's logits are seen first, as scoring sees them: suppressed tokens and cuts such as
    ``top_p`` are settings of the sampling, not errors of it. ``generate`` puts processors that it
    is passed behind its own (transformers 5.23, ``GenerationMixin._get_logits_processor``), so that
    method is asked here.

    Args:
        model: The policy, wrapped or not; LoRA may be around it.
        temperature: That scoring divides logits by.
    """
    sampled = SampledLogProbs()
    base = base_model(model)
    own = base._get_logits_processor  # noqa: SLF001

    def with_record(*args: Any, **kwargs: Any) -> LogitsProcessorList:
        return LogitsProcessorList([sampled.begin(temperature), *own(*args, **kwargs)])

    base._get_logits_processor = with_record  # noqa: SLF001
    try:
        yield sampled
    finally:
        del base._get_logits_processor  # noqa: SLF001 - its class has it


def compare(
    sampled: torch.Tensor, scored: torch.Tensor, is_token: torch.Tensor, accelerator: Any
) -> Difference:
    """Compares log-probabilities of completions; every rank must call this.

    Args:
        sampled: Shape (completions, longest).
        scored: The same shape.
        is_token: bool, the same shape; at least one is.
        accelerator: accelerate's, ready.
    """
    found = (sampled - scored.float()).abs().masked_select(is_token)
    own = torch.stack([found.sum(), found.new_tensor(len(found)), found.max()])
    of_ranks = accelerator.gather(own[None])
    total, number, _ = of_ranks.sum(dim=0).tolist()
    return Difference(total / number, float(of_ranks[:, 2].max()))
