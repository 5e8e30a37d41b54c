"""``trl.GRPOTrainer`` on a prompt stream: one group, one rank, one prefix.

All that is overridden of trl (1.16) and transformers (5.23) is in this file; bounds in
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

from grpo_stream.boxes import Frame
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.prompts import PromptTemplate
from grpo_stream.grounding.rewards import named_reward, with_template
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.train.batches.collate import Batch, PromptCollator
from grpo_stream.train.batches.complete_batch import CompletedCollator
from grpo_stream.train.batches.finite_rewards import check_finite
from grpo_stream.train.batches.groups import cut_micro_batches
from grpo_stream.train.batches.prompt_check import check_prompts
from grpo_stream.train.batches.view_batches import ViewCollator, check_view_settings, views_of
from grpo_stream.train.checkpoints.run_id import check_old_checkpoints
from grpo_stream.train.checkpoints.task_file import Task, write_task
from grpo_stream.train.checkpoints.universal import zero_stage_of
from grpo_stream.train.feed import Feed, RunLength, num_prompts_of
from grpo_stream.train.models.master_weights import (
    check_dtype,
    check_trained_weights,
    with_master_weights,
)
from grpo_stream.train.models.model_path import base_model_of
from grpo_stream.train.models.policy import (
    check_inputs,
    continued_adapter,
    input_names,
    policy_config,
)
from grpo_stream.train.models.processor import known_rule, load_processor
from grpo_stream.train.models.vision_attention import batch_windows, check_vision_attention
from grpo_stream.train.models.zero_leaves import leaf_layers, make_leaves
from grpo_stream.train.observe.bad_steps import check_max_bad_steps
from grpo_stream.train.observe.metrics import RunMetrics
from grpo_stream.train.observe.rollout_sheets import show_in_trackers
from grpo_stream.train.observe.tensorboard_log import make_tensorboard_safe
from grpo_stream.train.observer import Observer, RunFacts
from grpo_stream.train.prefix.attention import use_shared_prefix_attention
from grpo_stream.train.prefix.backbone import freeze_vision_tower as freeze_tower
from grpo_stream.train.prefix.backbone import has_frozen_vision_tower
from grpo_stream.train.prefix.sampling.generation import suppressed_token_ids
from grpo_stream.train.prefix.scoring import LogProbs
from grpo_stream.train.prefix.ways import FORKED, PLAIN, Packed, PrefixWay, ways_to_try
from grpo_stream.train.rollout import GroupRollout, RolloutSettings
from grpo_stream.train.run_state import Gathered, RunState, refill_columns
from grpo_stream.train.setup.arguments import LogArguments
from grpo_stream.train.setup.decode_setting import chosen_decode
from grpo_stream.train.setup.open_data import check_template
from grpo_stream.train.setup.settings_checks import (
    RewardArgument,
    check_policy,
    check_settings,
    check_ways,
)
from grpo_stream.train.setup.trainer_inputs import ImageArguments, PromptData, open_datasets
from grpo_stream.train.vllm import Engine, banning_kwargs, pixel_limits

logger = logging.get_logger("grpo_stream.train")

_TRL_ROLLOUTS = ("tools", "rollout_func", "environment_factory")


class PersonalizedGRPOTrainer(GRPOTrainer):
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
        decode: How packed groups sample a token: ``eager``, ``compiled`` as one graph, or ``auto``,
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
    optimizer: Any

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
        model_id = model if isinstance(model, str) else model.config._name_or_path  # noqa: SLF001
        revision = (args.model_init_kwargs or {}).get("revision") or "main"
        config = policy_config(model_id, revision) if isinstance(model, str) else model.config
        template, frame = check_policy(
            config, args, prompt_template=prompt_template, answer_frame=answer_frame
        )
        if isinstance(model, str) and kwargs.get("peft_config") is None:
            _check_weights(model, config, args, master_weights)
        rewards = [named_reward(with_template(one, template)) for one in checked.rewards]
        processor = processing_class or load_processor(model_id, revision=revision)
        images = ImageArguments(image_processor or processor.image_processor, images_root)
        is_ours = data_collator is None  # another collator may take images of any size
        streams = open_datasets(
            train_dataset, eval_dataset, args, checked.num_lanes, images, checks_sizes=is_ours
        )
        _check_streams(streams, args, template)
        words = (processor, template, frame)
        own = _own_collator(*words, args, image_processor, images_root, streams[0])
        if is_ours:
            check_prompts(own, streams[0].sources)
        banned = suppressed_token_ids(processor.tokenizer)
        if args.use_vllm:
            _ban_in_engine(args, processor, banned)
        # trl accepts only its own kinds of data sets; ours is read in get_train_dataloader.
        empty = Dataset.from_dict({"prompt": []})
        empty_eval = None if eval_dataset is None else Dataset.from_dict({"prompt": []})
        policy = continued_adapter(model, args)
        super().__init__(policy, rewards, args, empty, empty_eval, processor, **kwargs)
        self.data_collator = data_collator or own
        collate = own if data_collator is None else CompletedCollator(data_collator, own)
        for one in filter(None, (self.model, self.ref_model)):
            batch_windows(self.accelerator.unwrap_model(one), vision_attn_implementation)
        if freeze_vision_tower:
            freeze_tower(self.model)
        check_trained_weights(self.model, args, master_weights)
        self._master_weights = master_weights
        ways = self._ways_to_try(shared_prefix)
        self._check_inputs(ways, has_patches=known_rule(images.processor) is not None)
        self._make_parts(
            Feed(*streams, ViewCollator(collate), args, allow_new_lanes=allow_new_lanes),
            RunState(args, self.accelerator, old_checkpoints, master_weights),
            self._rollout_settings(
                refill_zero_variance,
                ways,
                log.logp_difference_steps,
                checks=shared_prefix_check,
                has_same_files=isinstance(model, str),
                decode=decode,
            ),
            self._ban_tokens(banned, images.processor),
            log,
            max_bad_steps,
        )

    def _rollout_settings(
        self,
        refill: int,
        ways: list[PrefixWay],
        logp_difference_steps: int,
        *,
        checks: bool,
        has_same_files: bool,
        decode: str,
    ) -> RolloutSettings:
        return RolloutSettings(
            refill_zero_variance=refill,
            ways=ways,
            is_proof_skipped=not checks,
            reference_has_own_tower=not has_same_files,
            decode=decode,
            pad_token_id=self._tokenizer.pad_token_id,
            reward_names=self.reward_func_names,
            reward_weights=self.reward_weights.cpu().numpy(),
            logp_difference_steps=logp_difference_steps,
        )

    @property
    def prefix_way(self) -> str:
        """``packed``, ``forked`` or ``plain``; before the first rollout, what is expected."""
        return self._rollout.way.name

    @property
    def shared_prefix(self) -> bool:
        """Whether a group's prompt is computed once; before the first rollout, what is expected."""
        return self._rollout.way is not PLAIN

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

    def _make_parts(
        self,
        feed: Feed,
        run_state: RunState,
        settings: RolloutSettings,
        engine: Engine | None,
        log: LogArguments,
        max_bad_steps: int,
    ) -> None:
        """All that this class keeps; other names with an underscore are trl's and transformers'."""
        facts = RunFacts(
            global_step=lambda: self.state.global_step,
            data_wait_seconds=lambda: feed.data_wait_seconds,
            awaited=lambda: feed.awaited(self._step),
        )
        make_tensorboard_safe(self.callback_handler)
        show = show_in_trackers(self.callback_handler, self.args.report_to)
        self._feed = feed
        self._observer = Observer(log, self.args, facts, show, max_bad_steps=max_bad_steps)
        self._run_state = run_state
        self.phases = self._observer.phases
        self.run_metrics = RunMetrics(self._metrics)
        self.run_metrics.at_each_log(self._observer.since_last_log)
        bad_steps = self._observer.bad_steps
        self.run_metrics.at_each_log(lambda: {"update/num_bad_steps": bad_steps.num})
        tools = (self.args, self.accelerator, self.phases, self.run_metrics)
        self._rollout = GroupRollout(settings, *tools, engine)
        self.train_stream, self.train_loader = feed.train_stream, feed.train_loader
        self.eval_loader = feed.eval_loader

    def close(self) -> None:
        """Ends the reading threads, and a colocated engine with all process groups of this rank.

        Neither begins again afterwards.
        """
        self._feed.close()
        self._rollout.close()

    # ---------------------------------------------------------------- data and position

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Replaces ``GRPOTrainer.get_train_dataloader`` (trl 1.16).

        trl repeats records inside the data set and lets accelerate deal them out to ranks. Here
        the stream already gives this rank its own prompts, once each, so neither may touch it:
        one item per micro-step, the same batch for all micro-steps of one generation.
        """
        return self._feed.train_batches()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Batch]:  # noqa: ARG002
        """Replaces ``GRPOTrainer.get_eval_dataloader`` (trl 1.16), as for training."""
        return self._feed.eval_batches()

    def num_examples(self, dataloader: DataLoader[Batch]) -> int:
        """Replaces ``Trainer.num_examples`` (transformers 5.23): prompts, not micro-steps."""
        return num_prompts_of(dataloader)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kw: Any) -> Any:
        """Extends ``Trainer.train`` (transformers 5.23): only whole checkpoints are resumed from.

        Raises:
            CheckpointError: the checkpoint is not whole.
            ConfigError: it does not fit this run, or True was given and there is none; or another
                run is in the output folder, or has left checkpoints there.
        """
        with self._run_state.output.holding():
            return super().train(self._run_state.choose(resume_from_checkpoint), *args, **kw)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer._inner_training_loop`` (transformers 5.23): a run begins."""
        self._run_state.begin_run(kwargs.get("resume_from_checkpoint"))
        self._observer.begin_run()
        return super()._inner_training_loop(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer._prepare_for_training`` (transformers 5.23): layers of few hooks.

        DeepSpeed's engine is made there; a reference model's was made by trl.
        """
        is_wanted = isinstance(self._rollout.way, Packed) and zero_stage_of(self.args) == 3
        if is_wanted and self.ref_model is not None:
            make_leaves(self.ref_model)
        with leaf_layers(self.model, is_wanted=is_wanted):
            return super()._prepare_for_training(*args, **kwargs)

    def set_initial_training_values(self, args: GRPOConfig, dataloader: Any) -> tuple[Any, ...]:
        """Extends ``Trainer.set_initial_training_values`` (transformers 5.23): finds the position.

        The length of a run whose batch sizes were changed depends on it, and upstream asks first.
        """
        values: tuple[Any, ...] = super().set_initial_training_values(args, dataloader)
        num_epochs, *middle, max_steps = values
        length = RunLength(num_epochs, max_steps)
        num_epochs, max_steps = self._feed.begin_run(length, self._run_state.checkpoint)
        self._run_state.read()
        return num_epochs, *middle, max_steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Extends ``Trainer._init_training_state`` (transformers 5.23): the cursor's position.

        Upstream derives it from the global step, as if every epoch had as many of them.
        """
        super()._init_training_state(*args, **kwargs)
        return self._feed.start

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Extends ``Trainer._run_epoch`` (transformers 5.23): tells the stream the epoch.

        Also sets trl's micro-step counter, which its checkpoints lack: it counts from the epoch's
        start, where a generation begins in any case. A finished run that is started again is left
        as it is: upstream would make one more update.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        length = self._feed.begin_epoch(kwargs["epoch"])  # a segment is shorter than its epoch
        kwargs["steps_in_epoch"] = length.num_micro_steps
        kwargs["num_update_steps_per_epoch"] = length.num_updates
        self._step = length.start
        self._buffered_inputs: list[dict[str, Any]] | None = None
        if kwargs["epoch"] == self._feed.start.epoch:
            self._restore_gathered()
        # DeepSpeed's engine takes its step at the end of ``backward``, in the midst of an update.
        stepping = self.model_wrapped if self.is_deepspeed_enabled else self.optimizer
        with self._observer.epoch(stepping):
            super()._run_epoch(*args, **kwargs)

    def _restore_gathered(self) -> None:
        """After a resume: the sums since the last log, which upstream keeps in memory alone."""
        gathered = self._run_state.take_gathered()
        if gathered is not None:
            self.run_metrics.restore(gathered.metrics)
            self._tr_loss = gathered.loss.to(self.args.device)
            # ``train_loss``, at the end, is the mean over the global steps of this start.
            self._total_loss_scalar = -self._tr_loss.item()
            self._globalstep_last_logged = gathered.global_step_logged
            refill_columns(self._logs, gathered.completions)
            self._observer.bad_steps.num = gathered.num_bad_steps

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

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Extends ``Trainer._get_grad_norm`` (transformers 5.23): asked before each update.

        Raises:
            BadStepsError: the gradient was not finite in too many of them.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        step = self.state.global_step + 1
        self._observer.bad_steps.judge(norm, self.optimizer, model, engine, global_step=step)
        return norm

    def prediction_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """Extends ``GRPOTrainer.prediction_step`` (trl 1.16): a batch weighs as much as it holds.

        trl logs the mean over batches, and the last one of an evaluation may be smaller.
        """
        with self.run_metrics.repeated("eval", inputs["num_prompts"]):
            return super().prediction_step(model, inputs, *args, **kwargs)

    # ---------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Extends ``GRPOTrainer._save_checkpoint`` (trl 1.16): whole or not at all.

        Adds position and run state. Older checkpoints go only when the new one is whole.

        Raises:
            CheckpointError: this rank could not write its part.
        """
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        sums = (self.run_metrics.state(), self._tr_loss, self._globalstep_last_logged, self._logs)
        gathered = Gathered(*sums, self._observer.bad_steps.num)
        with self.phases("checkpoint"), self._run_state.whole(folder):
            if self.args.should_save:
                self._feed.write_position(folder, self._step)
            is_in_use = self._feed.in_use(self._step) > 0
            self._run_state.write(folder, gathered, self.ref_model, is_in_use=is_in_use)
            super()._save_checkpoint(model, trial)
        self._run_state.output.rotate(folder, self.state.best_model_checkpoint)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer._finalize_training`` (transformers 5.23): only own checkpoints go.

        With ``save_total_limit=1`` upstream leaves the best one alone of all that are there.
        """
        with self._run_state.output.rotating_itself():
            output = super()._finalize_training(*args, **kwargs)
        best = self.state.best_model_checkpoint
        if best is not None and self.args.save_total_limit == 1:
            self._run_state.output.rotate(Path(best), best)
        return output

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Extends ``Trainer._save`` (transformers 5.23): how the policy is asked goes with it."""
        super()._save(output_dir, state_dict)
        collator = self.data_collator
        if self.args.should_save and isinstance(collator, PromptCollator):
            task = Task(collator.template, collator.answer_frame, collator.chat_template_kwargs)
            write_task(output_dir or self.args.output_dir, task)

    def create_optimizer(self, model: Any = None) -> Any:
        """Extends ``Trainer.create_optimizer`` (transformers 5.23): with float32 weights inside."""
        super().create_optimizer(model)
        if self._master_weights == "float32":
            self.optimizer = with_master_weights(self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Extends ``Trainer.create_scheduler`` (transformers 5.23): notes what was asked for."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        made = optimizer or self.optimizer
        self._run_state.optimizer_settings.note(made, num_training_steps)
        if self.is_deepspeed_enabled:
            self._observer.bad_steps.watch(self.optimizer)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Extends ``GRPOTrainer._load_optimizer_and_scheduler`` (trl 1.16).

        DeepSpeed leaves parts of its universal form as they are; all optimizers come with the
        settings of before; and a reference model that moves is not loaded upstream.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        self._run_state.restore_optimizer(self.optimizer, self.lr_scheduler, engine)
        self._run_state.restore_reference(self.ref_model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Replaces ``Trainer._load_from_checkpoint`` (transformers 5.23) for whole models.

        Checkpoints of Qwen2.5-VL name their weights as its first files did. transformers looks for
        the model's own names in them, without the renaming of ``from_pretrained``, and would train
        on the weights that the run began with (huggingface/transformers issue 43701). DeepSpeed
        does not come through here: it restores its own files.
        """
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        """Extends ``Trainer._load_best_model`` (transformers 5.23): the same, for the best one."""
        super()._load_best_model()
        if not self.is_deepspeed_enabled and isinstance(self.model, PreTrainedModel):
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    # ---------------------------------------------------------------- time and log

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer.get_batch_samples`` (transformers 5.23): the wait for data is timed."""
        with self.phases("data_wait"):
            return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``GRPOTrainer.training_step`` (trl 1.16): an update, unless one says else."""
        with self.phases("update"):
            return super().training_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer.evaluate`` (transformers 5.23): timed."""
        with self.phases("evaluate"):
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Extends ``GRPOTrainer.log`` (trl 1.16): asks for what belongs to each log of training."""
        if "loss" in logs:
            self.run_metrics.ask()
        if "train_runtime" in logs:  # the end: trackers are closed next
            self._observer.wait()
        super().log(logs, start_time)


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


def _check_weights(model_id: str, config: Any, args: GRPOConfig, master_weights: str) -> None:
    if not base_model_of(model_id):  # the adapter's weights are trained, not the base's
        check_dtype((args.model_init_kwargs or {}).get("dtype"), config, args, master_weights)


def _check_streams(
    streams: tuple[PromptStream, PromptStream | None],
    args: GRPOConfig,
    template: PromptTemplate,
) -> None:
    for stream in filter(None, streams):
        check_template(template, stream.sources)
    check_view_settings(views_of(streams[0]), args.num_generations)


def _own_collator(
    processor: Any,
    template: PromptTemplate,
    frame: Frame,
    args: GRPOConfig,
    image_processor: Any,
    images_root: str | Path | None,
    stream: PromptStream,
) -> PromptCollator:
    return PromptCollator(
        processor,
        template,
        frame,
        image_processor=image_processor,
        images_root=images_root,
        chat_template_kwargs=args.chat_template_kwargs,
        max_prompt_tokens=stream.config.max_prompt_tokens,
    )
