"""``trl.GRPOTrainer`` in whole groups: a prompt once in the rollout and in every scoring pass."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from trl.models.utils import unwrap_model_for_generation

from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.batches.groups import (
    PromptGroups,
    check_groups,
    cut_micro_batches,
    reward_rows,
)
from grpo_stream.train.batches.refill import choose, merge_scored, select_prompts, teaches
from grpo_stream.train.checkpoint_trainer import CheckpointTrainer
from grpo_stream.train.prefix.backbone import (
    backbone_of,
    encode_images,
    has_frozen_vision_tower,
    prompt_positions,
)
from grpo_stream.train.prefix.generation import generate_groups, trim_completions
from grpo_stream.train.prefix.packing import pack_groups, score_packed
from grpo_stream.train.vllm import Engine, engine_images


class GroupTrainer(CheckpointTrainer):
    """The part of the trainer that samples and scores.

    Used through :class:`grpo_stream.train.trainer.PersonalizedGRPOTrainer`.
    """

    shared_prefix: bool
    """Whether a group's prompt is computed once."""
    packed_attention: str
    """How a packed group attends: ``two_part``, ``dense`` or ``flex``."""
    refill_zero_variance: int
    """How many times more prompts than are trained on may be sampled for groups that teach."""
    _has_same_vision_tower: bool
    """Whether the reference model came from the policy's own files."""
    _groups: PromptGroups | None = None
    _engine: Engine | None = None
    """What samples in the policy's place, with ``use_vllm``."""

    def _prepare_inputs(self, generation_batch: Batch) -> dict[str, Any]:
        """Replaces ``GRPOTrainer._prepare_inputs`` (trl 1.16).

        The same buffer, with two differences: prompts are expanded to groups here, as references,
        and micro-batches are cut in order (trl shuffles the rows, which parts groups).
        """
        if not self.model.training:
            return self._rollout(generation_batch, self.num_generations_eval)
        num_micro_batches = self.args.steps_per_generation
        starts = self._step % self._micro_steps.num_repeats == 0
        if starts or self._micro_batches is None:
            saved = None if starts else self._saved_generation(generation_batch["key"])
            scored = self._rollout_to_train(generation_batch, saved)
            groups = scored.pop("groups")
            self._generation = generation_batch["key"], scored
            self._micro_batches = cut_micro_batches(scored, groups, num_micro_batches)
            if saved is None:
                self._log_stream()
        inputs: dict[str, Any] = self._micro_batches[self._step % num_micro_batches]
        return inputs

    def _rollout_to_train(self, batch: Batch, saved: dict[str, Any] | None) -> dict[str, Any]:
        """:meth:`_rollout` of as many prompts as are trained on.

        See :mod:`grpo_stream.train.batches.refill`.

        Args:
            batch: ``1 + refill_zero_variance`` times as many prompts.
            saved: What a checkpoint has kept of them.
        """
        size = self.num_generations
        if not self.refill_zero_variance:
            return self._rollout(batch, size, saved)
        if saved is not None:
            return self._rollout(select_prompts(batch, saved["kept"]), size, saved)
        num_kept = len(batch["key"]) // (1 + self.refill_zero_variance)
        flags: list[bool] = []
        parts: list[dict[str, Any]] = []
        while len(flags) < len(batch["key"]):
            numbers = range(len(flags), len(flags) + num_kept)
            parts.append(self._rollout(select_prompts(batch, numbers), size))
            flags += teaches(self._rollout_shown.rewards)
            if self._sum_over_ranks(max(0, num_kept - sum(flags))) == 0:
                break
        kept = choose(flags, num_kept)
        groups = PromptGroups.joined([part.pop("groups") for part in parts])
        own = [groups.rows(number * size, (number + 1) * size) for number in kept]
        scored = merge_scored(parts, kept, size, self._tokenizer.pad_token_id)
        scored["num_items_in_batch"] = self.accelerator.gather(
            scored["completion_mask"].sum()
        ).sum()
        num_equal = self._sum_over_ranks(sum(not flags[number] for number in kept))
        num_trained = num_kept * self.accelerator.num_processes
        metrics = self._metrics["train"]
        metrics["refill/num_rollouts"].append(len(parts))
        metrics["refill/frac_zero_std_trained"].append(num_equal / num_trained)
        num_unused = (1 + self.refill_zero_variance - len(parts)) * num_trained
        metrics["refill/num_samples_unused"].append(num_unused)
        return {**scored, "kept": kept, "groups": PromptGroups.joined(own)}

    def _sum_over_ranks(self, number: int) -> int:
        numbers = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return int(numbers.sum())

    def _rollout(
        self, batch: Batch, num_generations: int, scored: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Samples and scores the groups of a batch; trl's dict with the prompts as ``groups``.

        Args:
            batch: Prompts.
            num_generations: Completions of each.
            scored: What a checkpoint has kept of this: then nothing is sampled.
        """
        self._begin_rollout(batch)
        with self.phases("device_input"):
            groups = PromptGroups.from_batch(batch, num_generations, self.accelerator.device)
            if self.shared_prefix:
                groups = self._prepare_prompts(groups)
        if scored is None:
            rows = reward_rows(batch, num_generations)
            check_groups([row["key"] for row in rows], num_generations)
            with self.phases("rollout"), self._scoring(groups):
                scored = self._generate_and_score_completions(rows)
        return {**scored, "groups": groups}

    def _prepare_prompts(self, groups: PromptGroups) -> PromptGroups:
        """Adds what all passes of a generation batch share: positions, features of a frozen tower.

        Under ZeRO-3 the tower's weights are gathered; every rank comes here equally often.
        """
        model = self.accelerator.unwrap_model(self.model)
        groups = replace(groups, positions=prompt_positions(backbone_of(model), groups))
        if has_frozen_vision_tower(model):
            with self.accelerator.autocast():
                groups = replace(groups, image_features=encode_images(model, groups))
        return groups

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Replaces ``GRPOTrainer._tokenize_prompts`` (trl 1.16): the collator has encoded them."""
        groups = self._current_groups(len(prompts))
        ids = [row.tolist() for row in groups.prompt_ids]
        repeated = [row for row, size in zip(ids, groups.sizes, strict=True) for _ in range(size)]
        return repeated, None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        **kwargs: Any,
    ) -> Any:
        """Replaces ``GRPOTrainer._generate_single_turn`` (trl 1.16) by one prefill per group."""
        groups = self._current_groups(len(prompt_ids))
        if self._engine is not None:
            return self._generate_by_engine(self._engine, prompt_ids, num_generations)
        if not self.shared_prefix:
            longest = max(len(ids) for ids in prompt_ids)
            fields = multimodal_fields | groups.model_inputs(longest, 0)
            return super()._generate_single_turn(
                prompt_ids, images, fields, num_generations, **kwargs
            )
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as model:
            completion_ids = generate_groups(
                model, groups, self.generation_config, self._tokenizer.pad_token_id
            )
        return trim_completions(completion_ids, self.eos_token_ids), None

    def _generate_by_engine(
        self, engine: Engine, prompt_ids: list[list[int]], num_generations: int
    ) -> Any:
        """Completions and their log-probabilities, by vLLM."""
        keys = self._batch["key"]
        images = engine_images(self._batch["pixel_values"], keys, num_generations)
        engine.begin(keys, num_generations)
        before = engine.num_payload_bytes
        sampled = super()._generate_single_turn(prompt_ids, images, {}, num_generations)
        mode = "train" if self.model.training else "eval"
        num_bytes = engine.num_payload_bytes - before
        self._metrics[mode]["vllm/image_megabytes_sent"].append(num_bytes / 1e6)
        return sampled

    # ---------------------------------------------------------------- scoring

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Extends ``GRPOTrainer._compute_loss`` (trl 1.16): names the prompts being scored."""
        with self._scoring(inputs["groups"]):
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Replaces ``GRPOTrainer._get_per_token_logps_and_entropies`` (trl 1.16).

        Policy, old and reference log-probabilities all come through here. Each group is packed
        into one row (:mod:`grpo_stream.train.prefix.packing`); without ``shared_prefix`` trl's
        own way is taken, with the images repeated per completion.
        """
        groups = self._current_groups(len(input_ids))
        step = min(batch_size or len(input_ids), len(input_ids))
        log_probs, entropies = [], []
        for start in range(0, len(input_ids), step):
            rows = slice(start, min(start + step, len(input_ids)))
            part = groups.rows(rows.start, rows.stop)
            with self.phases("update" if torch.is_grad_enabled() else "scoring"):
                if not self.shared_prefix:
                    scored = super()._get_per_token_logps_and_entropies(
                        model,
                        input_ids[rows],
                        attention_mask[rows],
                        logits_to_keep,
                        compute_entropy=compute_entropy,
                        num_images=[1] * part.num_rows,
                        **part.model_inputs(input_ids.size(1) - logits_to_keep, logits_to_keep),
                    )[:2]
                else:
                    scored = self._score_packed(
                        model,
                        part,
                        input_ids[rows, -logits_to_keep:],
                        attention_mask[rows, -logits_to_keep:],
                        compute_entropy=compute_entropy,
                    )
            log_probs.append(scored[0])
            entropies.append(scored[1])
        entropy = torch.cat(entropies) if compute_entropy else None
        return torch.cat(log_probs), entropy, None

    def _score_packed(
        self,
        model: Any,
        groups: PromptGroups,
        completion_ids: torch.Tensor,
        completion_mask: torch.Tensor,
        *,
        compute_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if model is self.ref_model and not self._has_same_vision_tower:
            groups = replace(groups, image_features=None)
        packed = pack_groups(
            groups,
            completion_ids,
            completion_mask,
            prompt_positions(backbone_of(self.accelerator.unwrap_model(model)), groups),
            self._tokenizer.pad_token_id,
            self.packed_attention,
        )
        with self.accelerator.autocast():
            return score_packed(
                model, packed, groups, completion_mask, compute_entropy=compute_entropy
            )

    @contextlib.contextmanager
    def _scoring(self, groups: PromptGroups) -> Iterator[None]:
        """The prompts that trl's tensors belong to while its methods run."""
        self._groups = groups
        try:
            yield
        finally:
            self._groups = None

    def _current_groups(self, num_rows: int) -> PromptGroups:
        groups = self._groups
        if groups is None or groups.num_rows != num_rows:
            found = "no prompts" if groups is None else f"{groups.num_rows} completions"
            raise RuntimeError(f"{num_rows} completions are scored, {found} were announced")
        return groups
