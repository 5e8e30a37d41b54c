"""``trl.GRPOTrainer`` on a prompt stream: one group, one rank, one prefix.

All that is overridden of trl (1.16) and transformers (5.23) for GRPO alone is in this file: what is
trained on, sampling, rewards and scoring. What supervised fine-tuning overrides as well (position,
checkpoints, optimizer, times and log) is in :mod:`grpo_stream.train.streaming_trainer`; bounds in
``pyproject.toml`` keep to those versions. Each method says what it extends or replaces, and why,
and hands the work to one of four parts, which do not know each other: ``feed.py`` (batches,
position in the data), ``rollout.py`` (sampling and scoring of groups), ``run_state.py`` (what a
checkpoint adds) and ``observer.py`` (where the time goes). Losses, advantages, reference model,
schedules, weights on disk and the evaluation loop are trl's and transformers' own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.rewards import named_reward, with_template
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.train.batches.collate import Batch, PromptCollator
from grpo_stream.train.batches.complete_batch import CompletedCollator
from grpo_stream.train.batches.finite_rewards import check_finite
from grpo_stream.train.batches.groups import cut_micro_batches
from grpo_stream.train.batches.prompt_check import check_prompts
from grpo_stream.train.batches.view_batches import ViewCollator, check_view_settings, views_of
from grpo_stream.train.checkpoints.run_id import check_old_checkpoints
from grpo_stream.train.checkpoints.universal import zero_stage_of
from grpo_stream.train.engine_inputs import banning_kwargs, colocated_with, pixel_limits
from grpo_stream.train.feed import Feed
from grpo_stream.train.models.policy import (
    check_inputs,
    continued_adapter,
    input_names,
)
from grpo_stream.train.models.processor import known_rule
from grpo_stream.train.models.vision_attention import check_vision_attention
from grpo_stream.train.observe.bad_steps import check_max_bad_steps
from grpo_stream.train.prefix.attention import use_shared_prefix_attention
from grpo_stream.train.prefix.backbone import has_frozen_vision_tower
from grpo_stream.train.prefix.sampling.generation import suppressed_token_ids
from grpo_stream.train.prefix.scoring import LogProbs
from grpo_stream.train.prefix.ways import FORKED, PLAIN, Packed, PrefixWay, ways_to_try
from grpo_stream.train.rollout import GroupRollout, RolloutSettings
from grpo_stream.train.run_state import RunState, refill_columns
from grpo_stream.train.setup.arguments import LogArguments
from grpo_stream.train.setup.decode_setting import chosen_decode
from grpo_stream.train.setup.open_data import check_template
from grpo_stream.train.setup.policy_inputs import PolicyInputs, read_policy
from grpo_stream.train.setup.settings_checks import (
    RewardArgument,
    check_settings,
    check_ways,
)
from grpo_stream.train.setup.trainer_inputs import ImageArguments, PromptData, open_datasets
from grpo_stream.train.streaming_trainer import StreamingTrainer
from grpo_stream.train.vllm import Engine

logger = logging.get_logger("grpo_stream.train")

_TRL_ROLLOUTS = ("tools", "rollout_func", "environment_factory")


class PersonalizedGRPOTrainer(StreamingTrainer, GRPOTrainer):
    """GRPO for visual grounding, fed by a prompt stream.

    Each record is fetched, decoded, resized and encoded once, on the one rank that owns its whole
    group, ahead of the step. Under ``shared_prefix`` the prompt is also computed once per group.

    Args:
        model: Folder or hub id, or a model. A LoRA adapter's folder is trained further.
        reward_funcs: Functions with trl's signature, or names for
            :func:`grpo_stream.grounding.rewards.load_reward`. They receive the columns
            ``solution`` (frame ``original``), ``scales`` (original size), ``model_size``,
            ``answer_frame``, ``key`` and the record's own fields.
        args: trl's settings. ``max_steps`` is not needed: the data give the length.
        train_dataset: A :class:`PromptStream`, or raw records (mappings with ``image``,
            ``prompt``, ``solution``) whose images are in ``images_root``.
        eval_dataset: The same, for evaluation while training.
        processing_class: The model's processor; loaded from ``model`` when None.
        image_processor: Used for images instead of the processor's own.
        images_root: Folder that the ``image`` of a raw record is relative to; None: all of them
            are absolute paths.
        data_collator: From samples to a batch; a :class:`PromptCollator` when None. What it leaves
            out is added, see :class:`CompletedCollator`.
        prompt_template: Name or YAML file of the words around an instruction.
        answer_frame: Frame the model answers in; None takes the model family's.
        shared_prefix: ``auto`` computes a group's prompt once where the model allows it and logs
            the reason where not; ``on`` refuses instead; ``packed`` and ``forked`` are one of the
            two ways; ``off`` takes trl's layout.
        shared_prefix_check: The way is proven on the model before the first rollout
            (:mod:`grpo_stream.train.prefix.proof`).
        shared_prefix_attention: How packed groups attend, see
            :func:`grpo_stream.train.setup.settings_checks.packed_attention`.
        decode: How shared groups sample a token: ``eager``, ``compiled`` as one graph, or ``auto``,
            which compiles on CUDA. See :mod:`grpo_stream.train.prefix.sampling.decoder`.
        vision_attn_implementation: How the vision tower attends, see
            :func:`grpo_stream.train.models.vision_attention.batch_windows`.
        freeze_vision_tower: Leaves the vision tower untrained. Under ``shared_prefix`` its features
            are computed once per prompt then; that holds for any tower without trained weights.
        refill_zero_variance: Up to so many times more prompts are sampled in the place of groups
            whose rewards are all equal (:mod:`grpo_stream.train.batches.refill`). The stream's
            lanes are then ``1 + refill_zero_variance`` times the prompts that are trained on.
        allow_new_lanes: A checkpoint of another number of prompts per generation batch is resumed
            from, over exactly what is left of its epoch, instead of being refused.
        master_weights: Who keeps weights of 16 bits in 32 without DeepSpeed: ``float32``, an
            optimizer made here; ``optimizer``, one of your own; ``none``: then they are refused.
        max_bad_steps: A step whose loss or gradient is not finite is not taken; more than so many
            end the run.
        old_checkpoints: What becomes of another run's checkpoints in ``output_dir`` when this one
            begins: ``refuse``, ``move`` or ``keep`` them.
        log: How the run is watched.
        **kwargs: Passed on to ``GRPOTrainer``.

    Attributes:
        train_stream: What is trained on; ``train_loader`` reads it ahead, and ``eval_loader``, if
            any, what is evaluated.
        packed_attention: How completions of packed groups attend.
        phases: Stopwatch of this rank.
        run_metrics: The route by which a number reaches the log.

    Raises:
        ConfigError: settings that cannot work, before the model is loaded where possible.
    """

    _name = "PersonalizedGRPO"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardArgument,
        args: GRPOConfig | None = None,
        train_dataset: PromptData | None = None,
        eval_dataset: PromptData | None = None,
        processing_class: Any = None,
        *,
        image_processor: Any = None,
        images_root: str | Path | None = None,
        data_collator: Callable[[Sequence[Any]], Batch] | None = None,
        prompt_template: str = "point",
        answer_frame: str | None = None,
        shared_prefix: str = "auto",
        shared_prefix_check: bool = True,
        shared_prefix_attention: str = "auto",
        decode: str = "auto",
        vision_attn_implementation: str = "auto",
        freeze_vision_tower: bool = False,
        refill_zero_variance: int = 0,
        allow_new_lanes: bool = False,
        master_weights: str = "none",
        max_bad_steps: int = 3,
        old_checkpoints: str = "refuse",
        log: LogArguments | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or GRPOConfig("out")
        log = log or LogArguments()
        _check_arguments(old_checkpoints, max_bad_steps, kwargs)
        check_vision_attention(vision_attn_implementation)
        decode = _decode_mode(decode, args)
        checked = check_settings(
            args,
            log,
            reward_funcs,
            shared_prefix=shared_prefix,
            shared_prefix_attention=shared_prefix_attention,
            refill_zero_variance=refill_zero_variance,
            has_eval_data=eval_dataset is not None,
        )
        self.packed_attention = checked.packed_attention
        if train_dataset is None:
            raise ConfigError("train_dataset", None, "must be a PromptStream or raw records")
        policy = read_policy(
            model,
            args,
            processing_class,
            prompt_template=prompt_template,
            answer_frame=answer_frame,
            master_weights=master_weights,
            has_new_adapter=kwargs.get("peft_config") is not None,
        )
        processor = policy.processor
        rewards = [named_reward(with_template(one, policy.template)) for one in checked.rewards]
        images = ImageArguments(image_processor or processor.image_processor, images_root)
        data = (train_dataset, eval_dataset, checked.num_lanes)
        streams, own = _open_data(*data, policy, args, images, is_ours=data_collator is None)
        banned = suppressed_token_ids(processor.tokenizer)
        if args.use_vllm:
            _ban_in_engine(args, processor, banned)
        # trl accepts only its own kinds of data sets; ours is read in get_train_dataloader.
        empty = Dataset.from_dict({"prompt": []})
        empty_eval = None if eval_dataset is None else Dataset.from_dict({"prompt": []})
        trained = continued_adapter(model, args)
        with colocated_with(known_rule(images.processor)):
            super().__init__(trained, rewards, args, empty, empty_eval, processor, **kwargs)
        self.data_collator = data_collator or own
        collate = own if data_collator is None else CompletedCollator(data_collator, own)
        self._prepare_model(
            vision_attn_implementation, master_weights, freeze_vision_tower=freeze_vision_tower
        )
        self._use_parts(
            Feed(*streams, ViewCollator(collate), args, allow_new_lanes=allow_new_lanes),
            RunState(args, self.accelerator, old_checkpoints, master_weights),
            log,
            max_bad_steps,
        )
        ways = self._ways_to_try(shared_prefix)
        self._check_inputs(ways, has_patches=known_rule(images.processor) is not None)
        settings = RolloutSettings(
            refill_zero_variance=refill_zero_variance,
            ways=ways,
            is_proof_skipped=not shared_prefix_check,
            reference_has_own_tower=not isinstance(model, str),
            decode=decode,
            pad_token_id=self._tokenizer.pad_token_id,
            reward_names=self.reward_func_names,
            reward_weights=self.reward_weights.cpu().numpy(),
            logp_difference_steps=log.logp_difference_steps,
        )
        tools = (args, self.accelerator, self.phases, self.run_metrics)
        engine = self._ban_tokens(banned, images.processor)
        self._rollout = GroupRollout(settings, *tools, engine)

    @property
    def prefix_way(self) -> str:
        """``packed``, ``forked`` or ``plain``; before the first rollout, what is expected."""
        return self._rollout.way.name

    @property
    def shared_prefix(self) -> bool:
        """Whether a group's prompt is computed once; before the first rollout, what is expected."""
        return self._rollout.way is not PLAIN

    @property
    def _has_packed_groups(self) -> bool:
        return isinstance(self._rollout.way, Packed)

    def close(self) -> None:
        """Ends the reading threads, and a colocated engine with all process groups of this rank.

        Neither begins again afterwards.
        """
        super().close()
        self._rollout.close()

    def _ways_to_try(self, wanted: str) -> list[PrefixWay]:
        ways, reasons = ways_to_try(
            self.model.config,
            wanted,
            attention=None,
            packed_attention=self.packed_attention,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        check_ways(wanted, ways, reasons)
        if ways == [PLAIN] and reasons and self.accelerator.is_main_process:
            logger.warning("shared_prefix is off: %s", "; ".join(reasons))
        if any(isinstance(way, Packed) for way in ways):
            if zero_stage_of(self.args) == 3:
                ways = [way for way in ways if way is not FORKED]  # leaf_layers
            for model in filter(None, (self.model, self.ref_model)):
                use_shared_prefix_attention(self.accelerator.unwrap_model(model))
        return ways

    def _check_inputs(self, ways: list[PrefixWay], *, has_patches: bool) -> None:
        is_packed = any(isinstance(way, Packed) for way in ways)
        names = input_names(has_patches=has_patches, is_packed=is_packed)
        check_inputs(self.accelerator.unwrap_model(self.model), names)

    def _ban_tokens(self, banned: list[int], image_processor: Any) -> Engine | None:
        """Keeps tokens out of completions; the engine that samples, with ``use_vllm``."""
        image_token_id = self.model.config.image_token_id
        if self.use_vllm:  # was told by its settings
            limits = pixel_limits(known_rule(image_processor))
            is_trained = not has_frozen_vision_tower(self.accelerator.unwrap_model(self.model))
            model_type = self.model.config.model_type
            return Engine(self.vllm_generation, image_token_id, limits, model_type, is_trained)
        given = (self.args.generation_kwargs or {}).get("suppress_tokens") or []
        ids = sorted({*banned, *given, image_token_id})
        self.generation_kwargs["suppress_tokens"] = ids
        self.generation_config.suppress_tokens = ids
        return None

    # ---------------------------------------------------------------- data and position

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Replaces ``GRPOTrainer.get_train_dataloader`` (trl 1.16).

        trl repeats records inside the data set and lets accelerate deal them out to ranks. Here
        the stream already gives this rank its own prompts, once each, so neither may touch it:
        one item per micro-step, the same batch for all micro-steps of one generation.
        """
        return self._feed.train_batches()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Extends ``Trainer._run_epoch`` (transformers 5.23): no batch is in use at its start."""
        self._buffered_inputs: list[dict[str, Any]] | None = None
        super()._run_epoch(*args, **kwargs)

    def _sums_of_trl(self) -> dict[str, Any]:
        """The table of completions since the last log."""
        columns: dict[str, Any] = self._logs
        return columns

    def _restore_sums_of_trl(self, saved: dict[str, Any]) -> None:
        refill_columns(self._logs, saved)

    @property
    def _prompt_collator(self) -> PromptCollator | None:
        collator = self.data_collator
        return collator if isinstance(collator, PromptCollator) else None

    # ---------------------------------------------------------------- rollout and scoring

    def _prepare_inputs(self, generation_batch: Batch) -> dict[str, Any]:
        """Replaces ``GRPOTrainer._prepare_inputs`` (trl 1.16).

        The same buffer, with two differences: prompts are expanded to groups here, as references,
        and micro-batches are cut in order (trl shuffles the rows, which parts groups).
        """
        model, sample = self.model, self._generate_and_score_completions
        if not model.training:
            size = self.num_generations_eval
            return self._rollout.sample(generation_batch, size, model, sample)
        num_micro_batches = self.args.steps_per_generation
        in_use = self._feed.in_use(self._step)
        if not in_use or self._buffered_inputs is None:
            keys, saved = generation_batch["key"], None
            if in_use:  # resumed within a batch; what the stream did for it is in the log
                saved = self._run_state.take_generation(keys)
            if saved is not None:
                self._feed.skip_counters()
            scored = self._rollout.sample_to_train(generation_batch, model, sample, saved)
            groups = scored.pop("groups")
            self._run_state.use_generation(keys, scored)
            self._buffered_inputs = cut_micro_batches(scored, groups, num_micro_batches)
            if saved is None:
                self._feed.log_counters(self.run_metrics)
        inputs: dict[str, Any] = self._buffered_inputs[self._step % num_micro_batches]
        return inputs

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Replaces ``GRPOTrainer._tokenize_prompts`` (trl 1.16): the collator has encoded them.

        trl would run the processor on each completion's copy of the image.
        """
        return self._rollout.prompt_rows(len(prompts)), None, {}

    def _generate(self, prompts: list[Any]) -> Any:
        """Extends ``GRPOTrainer._generate`` (trl 1.16): counts the work of all ranks."""
        generated = super()._generate(prompts)
        if self.model.training:
            num_completions = len(prompts) * self.accelerator.num_processes
            mean_length = self.run_metrics.last("train", "completions/mean_length")
            num_tokens = round(mean_length * num_completions)
            self._observer.count_rollout(num_completions // self.num_generations, num_tokens)
        return generated

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        _images: Any,
        _fields: Any,
        num_generations: int,
        **_: Any,
    ) -> Any:
        """Replaces ``GRPOTrainer._generate_single_turn`` (trl 1.16) by one prefill per group.

        With ``use_vllm`` trl's own way is left, with what it lacks.
        """
        if self.use_vllm:
            upstream = super()._generate_single_turn
            is_training = self.model.training
            return self._rollout.generate_by_engine(
                upstream, prompt_ids, num_generations, "train" if is_training else "eval"
            )
        sampling = (self.generation_config, self.generation_kwargs, self.eos_token_ids)
        step = self.state.global_step if self.model.training else None
        return self._rollout.generate(self.model_wrapped, len(prompt_ids), *sampling, step), None

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """Extends ``GRPOTrainer._calculate_rewards`` (trl 1.16): timed, checked and shown.

        In an evaluation, prompts that a batch holds a second time get no reward.

        Raises:
            RewardError: one is infinite.
        """
        given = (inputs, prompts, completions, completion_ids_list)
        with self.phases("rewards"):
            rewards: torch.Tensor = super()._calculate_rewards(*given)
            keys = [row["key"] for row in inputs]
            check_finite(rewards, self.reward_func_names, self.reward_weights, keys)
        if not self.model.training:
            return self._rollout.blank_repeats(rewards, self.num_generations_eval)
        of_all_ranks = rewards.cpu().numpy()
        self._observer.show(self._rollout.rewarded(completions, of_all_ranks), of_all_ranks)
        return rewards

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> LogProbs:
        """Replaces ``GRPOTrainer._get_per_token_logps_and_entropies`` (trl 1.16): whole groups.

        Policy, old and reference log-probabilities all come through here.
        """
        is_reference = model is self.ref_model
        return self._rollout.score(model, *args, is_reference=is_reference, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Extends ``GRPOTrainer._compute_loss`` (trl 1.16): says whose completions are scored."""
        with self._rollout.scoring(inputs["groups"]):
            loss = super()._compute_loss(model, inputs)
        return (
            self._observer.bad_steps.guard(loss, inputs["groups"].keys) if model.training else loss
        )

    def prediction_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """Extends ``GRPOTrainer.prediction_step`` (trl 1.16): a batch weighs as much as it holds.

        trl logs the mean over batches, and the last one of an evaluation may be smaller.
        """
        with self.run_metrics.repeated("eval", inputs["num_prompts"]):
            return super().prediction_step(model, inputs, *args, **kwargs)


def _decode_mode(wanted: str, args: GRPOConfig) -> str:
    """``eager`` or ``compiled``; the log says why it is not what was asked for."""
    mode, reason = chosen_decode(wanted, args, args.device.type)
    if wanted == "compiled" != mode and args.process_index == 0:
        logger.warning("decode is %s: %s", mode, reason)
    return mode


def _ban_in_engine(args: GRPOConfig, processor: Any, banned: list[int]) -> None:
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    args.generation_kwargs = banning_kwargs(sorted({*banned, image}), args.generation_kwargs)


def _check_arguments(old_checkpoints: str, max_bad_steps: int, others: dict[str, Any]) -> None:
    check_old_checkpoints(old_checkpoints)
    check_max_bad_steps(max_bad_steps)
    for name in _TRL_ROLLOUTS:
        if others.get(name) is not None:
            raise ConfigError(name, others[name], "makes prompts of its own; leave it out")


def _open_data(
    train_dataset: PromptData,
    eval_dataset: PromptData | None,
    num_lanes: int,
    policy: PolicyInputs,
    args: GRPOConfig,
    images: ImageArguments,
    *,
    is_ours: bool,
) -> tuple[tuple[PromptStream, PromptStream | None], PromptCollator]:
    """The streams and what collates them, once they are known to fit the run.

    Args:
        train_dataset: For training.
        eval_dataset: For evaluation while training.
        num_lanes: Prompts per generation batch over all ranks.
        policy: Which is asked.
        args: The run's settings.
        images: How they are read.
        is_ours: Whether that collator is used as it is: another may take images of any size.
    """
    streams = open_datasets(
        train_dataset, eval_dataset, args, num_lanes, images, checks_sizes=is_ours
    )
    for stream in filter(None, streams):
        check_template(policy.template, stream.sources)
    check_view_settings(views_of(streams[0]), args.num_generations)
    collator = PromptCollator(
        policy.processor,
        policy.template,
        policy.frame,
        image_processor=images.processor,
        images_root=images.root,
        chat_template_kwargs=args.chat_template_kwargs,
        max_prompt_tokens=streams[0].config.max_prompt_tokens,
    )
    if is_ours:
        check_prompts(collator, streams[0].sources)
    return streams, collator
