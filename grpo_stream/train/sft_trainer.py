"""``trl.SFTTrainer`` on a prompt stream: the answer is taught, an image is computed once.

All that is overridden of trl (1.16) and transformers (5.23) for supervised fine-tuning is in this
file, as :mod:`grpo_stream.train.trainer` has it for GRPO: each method says what it extends or
replaces, and why, and hands the work to the same parts, ``feed.py`` (batches, position in the
data), ``run_state.py`` (what a checkpoint adds) and ``observer.py`` (where the time goes). Losses,
schedules, optimizers and weights on disk are trl's and transformers' own.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.train.batches.collate import Batch, PromptCollator
from grpo_stream.train.batches.micro_steps import first_of
from grpo_stream.train.batches.prompt_check import check_prompts
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
from grpo_stream.train.models.policy import continued_adapter, policy_config
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.vision_attention import batch_windows, check_vision_attention
from grpo_stream.train.models.zero_leaves import leaf_layers
from grpo_stream.train.observe.bad_steps import BadSteps, check_max_bad_steps
from grpo_stream.train.observe.metrics import RunMetrics
from grpo_stream.train.observe.rollout_sheets import show_in_trackers
from grpo_stream.train.observe.tensorboard_log import make_tensorboard_safe
from grpo_stream.train.observer import Observer, RunFacts
from grpo_stream.train.prefix.attention import use_shared_prefix_attention
from grpo_stream.train.prefix.backbone import freeze_vision_tower
from grpo_stream.train.prefix.packing import shared_prefix_obstacle
from grpo_stream.train.run_state import Gathered, RunState
from grpo_stream.train.setup.arguments import LogArguments
from grpo_stream.train.setup.open_data import check_all_have_images, check_template
from grpo_stream.train.setup.settings_checks import check_policy
from grpo_stream.train.supervised.supervised_arguments import SupervisedArguments
from grpo_stream.train.supervised.supervised_batches import MicroBatches, SupervisedCollator
from grpo_stream.train.supervised.supervised_checks import (
    check_no_balancing_loss,
    check_packed,
    check_streams,
    check_supervised,
)
from grpo_stream.train.supervised.supervised_rows import packed_inputs, plain_inputs
from grpo_stream.train.supervised.supervised_scores import Losses, share_of_hits, without_repeats
from grpo_stream.train.supervised.taught_answers import TaughtAnswers

logger = logging.get_logger("grpo_stream.train")


class StreamingSFTTrainer(SFTTrainer):
    """Supervised fine-tuning for visual grounding, fed by a prompt stream.

    A batch of the stream is the global batch of one update, so its order does not depend on ranks
    and micro-batches. The loss is the mean over the answers' tokens of that batch.

    Args:
        model: Folder or hub id, or a model.
        args: trl's settings. ``max_steps`` is not needed: the data give the length.
        train_dataset: Of records, or of image groups
            (:func:`grpo_stream.stream.image_groups.open_image_group`). Its lanes are
            ``per_device_train_batch_size * gradient_accumulation_steps * world size``.
        eval_dataset: Of records, for evaluation while training; its lanes are
            ``per_device_eval_batch_size * world size``.
        processing_class: The model's processor; loaded from ``model`` when None.
        task: What is taught, and how.
        allow_new_lanes: See :class:`grpo_stream.train.feed.Feed`.
        old_checkpoints: What becomes of another run's checkpoints in ``output_dir`` when this one
            begins: ``refuse``, ``move`` or ``keep`` them.
        log: How the run is watched.
        **kwargs: Passed on to ``SFTTrainer``.

    Attributes:
        train_stream: What is trained on; ``train_loader`` reads it ahead.
        shared_prefix: Whether groups are packed, and an image is computed once for all its records.
        phases: Stopwatch of this rank.
        run_metrics: The route by which a number reaches the log.

    Raises:
        ConfigError: settings that cannot work, before the model is loaded where possible.
    """

    _name = "StreamingSFT"

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: SFTConfig,
        train_dataset: PromptStream,
        eval_dataset: PromptStream | None = None,
        processing_class: Any = None,
        *,
        task: SupervisedArguments | None = None,
        allow_new_lanes: bool = False,
        old_checkpoints: str = "refuse",
        log: LogArguments | None = None,
        **kwargs: Any,
    ) -> None:
        self._task, log = task or SupervisedArguments(), log or LogArguments()
        log.check()
        check_old_checkpoints(old_checkpoints)
        check_max_bad_steps(self._task.max_bad_steps)
        check_vision_attention(self._task.vision_attn_implementation)
        self._task.check(has_eval_data=eval_dataset is not None)
        check_supervised(args, has_eval_data=eval_dataset is not None)
        check_streams(train_dataset, eval_dataset, args)
        model_id = model if isinstance(model, str) else model.config._name_or_path  # noqa: SLF001
        revision = (args.model_init_kwargs or {}).get("revision") or "main"
        config = policy_config(model_id, revision) if isinstance(model, str) else model.config
        template, frame = check_policy(
            config,
            args,
            prompt_template=self._task.prompt_template,
            answer_frame=self._task.answer_frame,
        )
        check_no_balancing_loss(config, args)
        check_template(template, train_dataset.sources)
        check_all_have_images(train_dataset.sources, args.world_size)
        has_adapter = kwargs.get("peft_config") is not None or base_model_of(model_id)
        if isinstance(model, str) and not has_adapter:
            dtype = (args.model_init_kwargs or {}).get("dtype")
            check_dtype(dtype, config, args, self._task.master_weights)
        answers = TaughtAnswers(template, frame, self._task.answer_key, self._task.snap)
        processor = processing_class or load_processor(model_id, revision=revision)
        collator = SupervisedCollator(
            PromptCollator(
                processor,
                template,
                frame,
                chat_template_kwargs=self._task.template_variables,
                max_prompt_tokens=train_dataset.config.max_prompt_tokens,
            ),
            answers,
            args.per_device_train_batch_size,
        )
        check_prompts(collator.prompts, train_dataset.sources)
        # trl looks at a sample of its own kinds of data sets; ours is read in get_train_dataloader.
        empty = Dataset.from_list([{"messages": [], "images": []}])
        empty_eval = None if eval_dataset is None else empty
        policy = continued_adapter(model, args)
        super().__init__(policy, args, collator, empty, empty_eval, processor, **kwargs)
        # Qwen2.5-VL's own loss knows no number of tokens, so transformers would take the mean over
        # micro-batches (``Trainer.get_batch_samples``, 5.23); trl's loss does know it.
        self.model_accepts_loss_kwargs = True
        batch_windows(
            self.accelerator.unwrap_model(self.model), self._task.vision_attn_implementation
        )
        if self._task.freeze_vision_tower:
            freeze_vision_tower(self.model)
        check_trained_weights(self.model, args, self._task.master_weights)
        self.shared_prefix = self._use_shared_prefix(self._task.shared_prefix)
        feed = Feed(
            train_dataset,
            eval_dataset,
            collator,
            args,
            allow_new_lanes=allow_new_lanes,
            num_repeats=args.gradient_accumulation_steps,
        )
        run_state = RunState(args, self.accelerator, old_checkpoints, self._task.master_weights)
        self._make_parts(feed, run_state, log)

    def _use_shared_prefix(self, wanted: str) -> bool:
        obstacle = shared_prefix_obstacle(self.model.config)
        check_packed(wanted, obstacle)
        if obstacle and wanted == "auto" and self.accelerator.is_main_process:
            logger.warning("shared_prefix is off: %s", obstacle)
        is_used = wanted != "off" and obstacle is None
        if is_used:
            use_shared_prefix_attention(self.accelerator.unwrap_model(self.model))
        return is_used

    def _make_parts(self, feed: Feed, run_state: RunState, log: LogArguments) -> None:
        """All that this class keeps; other names with an underscore are trl's and transformers'."""
        self._micro_step = 0
        self._eval_losses = Losses()
        self._bad_steps = BadSteps(self._task.max_bad_steps)
        facts = RunFacts(
            global_step=lambda: self.state.global_step,
            data_wait_seconds=lambda: feed.data_wait_seconds,
            awaited=lambda: feed.awaited(self._micro_step),
        )
        make_tensorboard_safe(self.callback_handler)
        show = show_in_trackers(self.callback_handler, self.args.report_to)
        self._feed = feed
        self._observer = Observer(log, self.args, facts, show)
        self._run_state = run_state
        self.phases = self._observer.phases
        self.run_metrics = RunMetrics(self._metrics)
        self.run_metrics.at_each_log(self._observer.since_last_log)
        self.run_metrics.at_each_log(lambda: {"update/num_bad_steps": self._bad_steps.num})
        self.train_stream, self.train_loader = feed.train_stream, feed.train_loader
        self.eval_loader = feed.eval_loader

    def close(self) -> None:
        """Ends the reading threads. Iterating again is not possible afterwards."""
        self._feed.close()

    # ---------------------------------------------------------------- data and position

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Replaces ``Trainer.get_train_dataloader`` (transformers 5.23): one item per micro-step.

        accelerate must not deal the stream out to ranks: it gives this rank its own part already.
        """
        parts = MicroBatches(self._feed.micro_steps, self._begin_batch)
        return DataLoader(parts, batch_size=1, collate_fn=first_of)

    def _begin_batch(self, keys: list[str]) -> None:
        self.phases.keys = keys
        self._feed.log_counters(self.run_metrics)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Batch]:  # noqa: ARG002
        """Replaces ``Trainer.get_eval_dataloader`` (transformers 5.23), as for training."""
        return self._feed.eval_batches()

    def num_examples(self, dataloader: DataLoader[Batch]) -> int:
        """Replaces ``Trainer.num_examples`` (transformers 5.23): groups, not micro-steps."""
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

        DeepSpeed's engine is made there.
        """
        is_wanted = self.shared_prefix and zero_stage_of(self.args) == 3
        with leaf_layers(self.model, is_wanted=is_wanted):
            return super()._prepare_for_training(*args, **kwargs)

    def set_initial_training_values(self, args: SFTConfig, dataloader: Any) -> tuple[Any, ...]:
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
        """Extends ``Trainer._init_training_state`` (transformers 5.23): the cursor's position."""
        super()._init_training_state(*args, **kwargs)
        return self._feed.start

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Extends ``Trainer._run_epoch`` (transformers 5.23): tells the stream the epoch.

        A finished run that is started again is left as it is: upstream would make one more update.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        length = self._feed.begin_epoch(kwargs["epoch"])  # a segment is shorter than its epoch
        kwargs["steps_in_epoch"] = length.num_micro_steps
        kwargs["num_update_steps_per_epoch"] = length.num_updates
        self._micro_step = length.start
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
            self._total_train_tokens = gathered.completions["num_tokens"]
            self._bad_steps.num = gathered.num_bad_steps

    # ---------------------------------------------------------------- rows and losses

    def _prepare_inputs(self, inputs: Batch) -> dict[str, Any]:
        """Replaces ``Trainer._prepare_inputs`` (transformers 5.23): rows are laid out here.

        Images are normalised and cut on the device, once per group.
        """
        pad = self._tokenizer.pad_token_id
        with self.phases("device_input"):
            lay_out = packed_inputs if self.shared_prefix else plain_inputs
            model = self.accelerator.unwrap_model(self.model)
            return lay_out(model, inputs, pad, self.args.device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Extends ``SFTTrainer.compute_loss`` (trl 1.16): one that is not finite is noticed."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return self._bad_steps.guard(loss, self.phases.keys) if model.training else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Extends ``Trainer._get_grad_norm`` (transformers 5.23): asked before each update.

        Raises:
            BadStepsError: the gradient was not finite in too many of them.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        step = self.state.global_step + 1
        self._bad_steps.judge(norm, self.optimizer, model, engine, global_step=step)
        return norm

    def prediction_step(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Any:
        """Replaces ``SFTTrainer.prediction_step`` (trl 1.16): an answer's token weighs the same.

        trl takes the mean over batches, and records that the last batch holds twice would count.
        """
        for micro_batch in without_repeats(inputs, self.args.process_index):
            num_tokens = int((micro_batch["labels"] != -100).sum())
            prepared = self._prepare_inputs(micro_batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, prepared)
            self._eval_losses.add(loss, num_tokens)
        return None, None, None

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer.evaluation_loop`` (transformers 5.23): figures over all records.

        Adds ``eval_loss`` and, with ``stop_accuracy``, ``eval_point_accuracy``.
        """
        self._eval_losses = Losses()
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = self._eval_losses.mean(self.accelerator)
        if self._task.stop_accuracy is not None:
            accuracy = share_of_hits(
                self.model_wrapped,
                dataloader,
                self._tokenizer,
                self.accelerator,
                self._task.max_completion_length,
            )
            output.metrics[f"{prefix}_point_accuracy"] = accuracy
        return output

    # ---------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Extends ``SFTTrainer._save_checkpoint`` (trl 1.16): whole or not at all.

        Adds position and run state. Older checkpoints go only when the new one is whole.

        Raises:
            CheckpointError: this rank could not write its part.
        """
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        counted = {"num_tokens": self._total_train_tokens}
        sums = (self.run_metrics.state(), self._tr_loss, self._globalstep_last_logged, counted)
        with self.phases("checkpoint"), self._run_state.whole(folder):
            if self.args.should_save:
                self._feed.write_position(folder, self._micro_step)
            gathered = Gathered(*sums, self._bad_steps.num)
            self._run_state.write(folder, gathered, None, is_in_use=False)
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
        if self.args.should_save:
            prompts = self.data_collator.prompts
            task = Task(prompts.template, prompts.answer_frame, prompts.chat_template_kwargs)
            write_task(output_dir or self.args.output_dir, task)

    def create_optimizer(self, model: Any = None) -> Any:
        """Extends ``Trainer.create_optimizer`` (transformers 5.23): with float32 weights inside."""
        made = super().create_optimizer(model)
        if self._task.master_weights == "float32":
            made = with_master_weights(made)
        self.optimizer = made
        return made

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Extends ``Trainer.create_scheduler`` (transformers 5.23): notes what was asked for."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        made = optimizer or self.optimizer
        self._run_state.optimizer_settings.note(made, num_training_steps)
        if self.is_deepspeed_enabled:
            self._bad_steps.watch(self.optimizer)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Extends ``Trainer._load_optimizer_and_scheduler`` (transformers 5.23).

        DeepSpeed leaves parts of its universal form as they are, and all optimizers come with the
        settings of before.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        self._run_state.restore_optimizer(self.optimizer, self.lr_scheduler, engine)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Replaces ``Trainer._load_from_checkpoint`` (transformers 5.23) for whole models.

        Names of weights are as in the checkpoint's first files (transformers issue 43701), see
        :meth:`grpo_stream.train.trainer.PersonalizedGRPOTrainer._load_from_checkpoint`.
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
        """Extends ``Trainer.get_batch_samples`` (transformers 5.23): timed, and work is counted.

        Other ranks are taken to have as many records as this one.
        """
        with self.phases("data_wait"):
            batches, num_tokens = super().get_batch_samples(*args, **kwargs)
        num_records = sum(size for batch in batches for size in batch["sizes"])
        self._observer.count_rollout(num_records * self.args.world_size, int(num_tokens))
        return batches, num_tokens

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``SFTTrainer.training_step`` (trl 1.16): an update, unless one says else."""
        with self.phases("update"):
            loss = super().training_step(*args, **kwargs)
        self._micro_step += 1
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``SFTTrainer.evaluate`` (trl 1.16): timed."""
        with self.phases("evaluate"):
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Extends ``SFTTrainer.log`` (trl 1.16): asks for what belongs to each log of training."""
        if "loss" in logs:
            self.run_metrics.ask()
        super().log(logs, start_time)
