"""Sampling and scoring in whole groups: a prompt once in the rollout and in every scoring pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from trl import GRPOConfig
from trl.models.utils import unwrap_model_for_generation

from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.batches.groups import PromptGroups, check_groups, reward_rows
from grpo_stream.train.batches.refill import (
    choose,
    log_refill,
    merge_scored,
    sample_until_taught,
    select_prompts,
)
from grpo_stream.train.batches.view_batches import check_views, views_in
from grpo_stream.train.engine_inputs import engine_images
from grpo_stream.train.models.policy import check_inputs
from grpo_stream.train.models.zero_trace import kept_trace, whole_traces
from grpo_stream.train.observe.metrics import Mode, RunMetrics
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.observe.rollout_sheets import Rollout
from grpo_stream.train.prefix.proof import proven_way
from grpo_stream.train.prefix.sampling.decoder import Decoder
from grpo_stream.train.prefix.sampling.generation import trim_completions
from grpo_stream.train.prefix.sampling.sampling_difference import SamplingCheck
from grpo_stream.train.prefix.scoring import GroupScorer, LogProbs
from grpo_stream.train.prefix.ways import PrefixWay
from grpo_stream.train.vllm import Engine

Scored = dict[str, Any]
"""trl's dict of a scored rollout: tensors with one row per completion."""
ScoreRows = Callable[[list[dict[str, Any]]], Scored]
"""Samples and scores completions, one for each row."""


@dataclass(frozen=True)
class RolloutSettings:
    """What stays the same from rollout to rollout."""

    refill_zero_variance: int
    """How many times more prompts than are trained on may be sampled for groups that teach."""
    ways: Sequence[PrefixWay]
    """How a group may be computed, in order of preference."""
    is_proof_skipped: bool
    """The first way is taken as it is, instead of the first that proves itself."""
    reference_has_own_tower: bool
    """Whether the reference model's vision tower may be another one than the policy's."""
    decode: str
    """``eager`` or ``compiled``: how packed and forked groups compute a token."""
    pad_token_id: int
    reward_names: Sequence[str]
    reward_weights: NDArray[np.float32]
    """Shape (reward functions,)."""
    logp_difference_steps: int = 0
    """Global steps between two comparisons of sampled and scored log-probabilities; 0: none."""


class GroupRollout:
    """Samples and scores the groups of this rank.

    trl's methods know rows of tensors; whose prompts those belong to is announced here while they
    run (:meth:`scoring`), and the trainer's overrides ask for it.

    Args:
        settings: Of the rollouts.
        args: Of the run.
        accelerator: accelerate's, ready.
        phases: Stopwatch of this rank.
        metrics: Of the run.
        engine: What samples in the policy's place, with ``use_vllm``.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        args: GRPOConfig,
        accelerator: Any,
        phases: Phases,
        metrics: RunMetrics,
        engine: Engine | None = None,
    ) -> None:
        self._settings = settings
        self._args = args
        self._accelerator = accelerator
        self._phases = phases
        self._metrics = metrics
        self._engine = engine
        self._decoder = Decoder(settings.decode)
        self._scorer = GroupScorer(accelerator, phases)
        steps = settings.logp_difference_steps
        self._check = SamplingCheck(steps, args, accelerator, self._scorer, metrics)
        self._proven = settings.ways[0] if settings.is_proof_skipped else None
        self._groups: PromptGroups | None = None
        self._batch: Batch = {}
        self._rewarded: Rollout | None = None

    @property
    def way(self) -> PrefixWay:
        """How groups are computed; until the first rollout, how they are expected to be."""
        return self._proven or self._settings.ways[0]

    def close(self) -> None:
        """Ends the engine, where there is one."""
        if self._engine is not None:
            self._engine.close()

    # ---------------------------------------------------------------- rollout

    def sample_to_train(
        self, batch: Batch, model: Any, score_rows: ScoreRows, saved: Scored | None
    ) -> Scored:
        """:meth:`sample` for as many prompts as are trained on.

        See :mod:`grpo_stream.train.batches.refill`.

        Args:
            batch: ``1 + refill_zero_variance`` times as many prompts.
            model: The policy.
            score_rows: trl's.
            saved: What a checkpoint has kept of them.
        """
        size, refill = self._args.num_generations, self._settings.refill_zero_variance
        if not refill:
            return self.sample(batch, size, model, score_rows, saved)
        if saved is not None:
            return self.sample(select_prompts(batch, saved["kept"]), size, model, score_rows, saved)
        num_kept = len(batch["key"]) // views_in(batch) // (1 + refill)

        def sample(part: Batch) -> tuple[Scored, NDArray[np.float32]]:
            scored = self.sample(part, size, model, score_rows)
            assert self._rewarded is not None  # noqa: S101 - trl has asked for the rewards
            return scored, self._rewarded.rewards.reshape(-1, size)  # of all views together

        parts, flags = sample_until_taught(batch, num_kept, sample, self._sum_over_ranks)
        kept = choose(flags, num_kept)
        groups = PromptGroups.joined([part.pop("groups") for part in parts])
        own = [groups.rows(number * size, (number + 1) * size) for number in kept]
        scored = merge_scored(parts, kept, size, self._settings.pad_token_id)
        scored["num_items_in_batch"] = self._accelerator.gather(
            scored["completion_mask"].sum()
        ).sum()
        log_refill(
            self._metrics,
            num_rollouts=len(parts),
            refill=refill,
            num_equal=self._sum_over_ranks(sum(not flags[number] for number in kept)),
            num_trained=num_kept * self._accelerator.num_processes,
        )
        return {**scored, "kept": kept, "groups": PromptGroups.joined(own)}

    def sample(
        self,
        batch: Batch,
        num_generations: int,
        model: Any,
        score_rows: ScoreRows,
        saved: Scored | None = None,
    ) -> Scored:
        """Samples and scores the groups of a batch; trl's dict with the prompts as ``groups``.

        Args:
            batch: Prompts, or views of them.
            num_generations: Completions of each prompt, all views together.
            model: The policy.
            score_rows: trl's.
            saved: What a checkpoint has kept of this: then nothing is sampled.
        """
        self._batch = batch
        num_of_each = num_generations // views_in(batch)
        with self._phases("device_input", batch["key"]):
            groups = PromptGroups.from_batch(
                batch,
                num_of_each,
                self._accelerator.device,
                num_ranks=self._accelerator.num_processes,
            )
            unwrapped = self._accelerator.unwrap_model(model)
            if self._proven is None:
                check_inputs(unwrapped, filter(None, [groups.types_name]))
                ways = self._settings.ways
                self._proven = proven_way(ways, model, groups, self._accelerator)
            groups = self.way.prepare(unwrapped, groups, self._accelerator.autocast)
        if saved is None:
            rows = reward_rows(batch, num_of_each)
            check_groups([row["key"] for row in rows], num_generations)
            check_views(batch)
            in_rollout = self._phases("rollout")
            with in_rollout, whole_traces(self._accelerator), self.scoring(groups):
                saved = score_rows(rows)
        return {**saved, "groups": groups}

    def _sum_over_ranks(self, number: int) -> int:
        numbers = self._accelerator.gather(torch.tensor([number], device=self._accelerator.device))
        return int(numbers.sum())

    # ---------------------------------------------------------------- within trl's methods

    @contextmanager
    def scoring(self, groups: PromptGroups) -> Iterator[None]:
        """The prompts that trl's tensors belong to while its methods run."""
        self._groups = groups
        try:
            yield
        finally:
            self._groups = None

    def prompt_rows(self, num_rows: int) -> list[list[int]]:
        """Token ids of the prompts of ``num_rows`` completions."""
        groups = self._current_groups(num_rows)
        ids = [row.tolist() for row in groups.prompt_ids]
        return [row for row, size in zip(ids, groups.sizes, strict=True) for _ in range(size)]

    def generate(
        self,
        model: Any,
        num_rows: int,
        generation_config: Any,
        generation_kwargs: dict[str, Any],
        eos_token_ids: list[int],
        train_step: int | None = None,
    ) -> list[list[int]]:
        """Completions from one prefill per group; token ids up to and with the first end token.

        Args:
            model: The policy, wrapped.
            num_rows: How many.
            generation_config: transformers'.
            generation_kwargs: The same as keywords.
            eos_token_ids: End tokens.
            train_step: Global step of the training that they are for; None: an evaluation.
        """
        groups = self._current_groups(num_rows)
        is_gathered = self._args.ds3_gather_for_generation
        with (
            kept_trace(self._accelerator, is_gathered=is_gathered),
            unwrap_model_for_generation(
                model,
                self._accelerator,
                gather_deepspeed3_params=is_gathered,
                generation_kwargs=generation_kwargs,
                gradient_checkpointing_kwargs=self._args.gradient_checkpointing_kwargs,
            ) as unwrapped,
            self._check.watching(unwrapped, train_step) as sampled,
        ):
            pad = self._settings.pad_token_id
            completion_ids = self.way.sample(
                unwrapped, groups, generation_config, pad, self._decoder
            )
        rows = trim_completions(completion_ids, eos_token_ids)
        if sampled is not None:
            self._check.log(sampled, self.way, model, groups, completion_ids, rows)
        return rows

    def generate_by_engine(
        self,
        upstream: Callable[..., Any],
        prompt_ids: list[list[int]],
        num_generations: int,
        mode: Mode,
    ) -> Any:
        """Completions and their log-probabilities by vLLM.

        Args:
            upstream: trl's ``_generate_single_turn``.
            prompt_ids: One prompt for each completion.
            num_generations: Completions of each prompt, all views together.
            mode: What they are for.
        """
        engine, keys = self._engine, self._batch["key"]
        assert engine is not None  # noqa: S101 - the trainer has use_vllm
        num_generations //= views_in(self._batch)  # a view is a prompt of its own to an engine
        images = engine_images(self._batch["pixel_values"], keys, num_generations)
        engine.begin(keys, num_generations, self._batch.get("short_ids"))
        before = engine.num_payload_bytes
        sampled = upstream(prompt_ids, images, {}, num_generations)
        num_bytes = engine.num_payload_bytes - before
        self._metrics.log_metric(mode, "vllm/image_megabytes_sent", num_bytes / 1e6)
        return sampled

    def score(
        self,
        model: Any,
        input_ids: torch.Tensor,
        *args: Any,
        is_reference: bool,
        **kwargs: Any,
    ) -> LogProbs:
        """See :meth:`grpo_stream.train.prefix.scoring.GroupScorer.score`.

        ``is_reference`` says that ``model`` is the reference model.
        """
        groups = self._current_groups(len(input_ids))
        if is_reference and self._settings.reference_has_own_tower:
            groups = replace(groups, image_features=None)
        return self._scorer.score(self.way, model, groups, input_ids, *args, **kwargs)

    def rewarded(self, completions: list[Any], parts: NDArray[np.float32]) -> Rollout:
        """What this rank has sampled, with what it was worth.

        Args:
            completions: Of this rank.
            parts: Shape (completions of all ranks, reward functions), NaN where one does not apply.
        """
        start = self._accelerator.process_index * len(completions)
        own, settings = parts[start : start + len(completions)], self._settings
        names, weights = settings.reward_names, settings.reward_weights
        size = self._args.num_generations // views_in(self._batch)
        self._rewarded = Rollout(self._batch, completions, own, names, weights, size)
        return self._rewarded

    def blank_repeats(self, rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
        """Rewards of an evaluation batch with NaN for prompts that are in it a second time.

        Args:
            rewards: Shape (completions of all ranks, reward functions); changed in place.
            num_generations: Completions of a prompt.
        """
        rewards[self._batch["num_prompts"] * num_generations :] = torch.nan
        return rewards

    def _current_groups(self, num_rows: int) -> PromptGroups:
        groups = self._groups
        if groups is None or groups.num_rows != num_rows:
            found = "no prompts" if groups is None else f"{groups.num_rows} completions"
            raise RuntimeError(f"{num_rows} completions are scored, {found} were announced")
        return groups
