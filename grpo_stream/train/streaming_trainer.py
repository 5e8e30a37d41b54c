"""``transformers.Trainer`` on a prompt stream: what both trainers of this library override alike.

:mod:`grpo_stream.train.trainer` (GRPO) and :mod:`grpo_stream.train.sft_trainer` (supervised) put
this class before trl's. Here are the position in the data, whole checkpoints and the way back from
one, optimizer and DeepSpeed, times and log; theirs is what is trained on, and how. As in those
files, each method says what it extends or replaces, and why, and hands the work to one of the
parts: ``feed.py``, ``run_state.py``, ``observer.py``. Where it names trl's version beside
transformers', a trainer of trl overrides the method as well, and that is extended with it.
"""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.train.batches.collate import Batch, PromptCollator
from grpo_stream.train.batches.eval_batches import EvalLoader
from grpo_stream.train.checkpoints.task_file import Task, write_task
from grpo_stream.train.checkpoints.universal import zero_stage_of
from grpo_stream.train.feed import Feed, RunLength, num_prompts_of
from grpo_stream.train.models.master_weights import check_trained_weights, with_master_weights
from grpo_stream.train.models.vision_attention import batch_windows
from grpo_stream.train.models.zero_leaves import leaf_layers, make_leaves
from grpo_stream.train.observe.metrics import RunMetrics
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.observe.rollout_sheets import show_in_trackers
from grpo_stream.train.observe.tensorboard_log import make_tensorboard_safe
from grpo_stream.train.observer import Observer, RunFacts
from grpo_stream.train.prefix.backbone import freeze_vision_tower as freeze_tower
from grpo_stream.train.run_state import Gathered, RunState
from grpo_stream.train.setup.arguments import LogArguments


class StreamingTrainer(Trainer):
    """The shared half of the trainers. It is a base class only; see the two for what they take.

    A trainer calls :meth:`_prepare_model` and :meth:`_use_parts` at the end of its ``__init__``,
    and answers :attr:`_has_packed_groups`, :attr:`_prompt_collator`, :meth:`_sums_of_trl` and
    :meth:`_restore_sums_of_trl`.

    Attributes:
        train_stream: What is trained on; ``train_loader`` reads it ahead, and ``eval_loader``, if
            any, what is evaluated.
        phases: Stopwatch of this rank.
        run_metrics: The route by which a number reaches the log.
    """

    train_stream: PromptStream
    train_loader: PromptLoader[Batch]
    eval_loader: EvalLoader | None
    phases: Phases
    run_metrics: RunMetrics

    _feed: Feed
    _run_state: RunState
    _observer: Observer
    _master_weights: str

    optimizer: Any
    ref_model: Any = None
    """GRPO's reference model, if it has one."""
    _step: int = 0
    """Micro-steps since the epoch's start. ``GRPOTrainer`` (trl 1.16) counts them by itself."""

    def _prepare_model(
        self, vision_attn_implementation: str, master_weights: str, *, freeze_vision_tower: bool
    ) -> None:
        """What is done to a policy that trl has loaded, before it is wrapped by DeepSpeed.

        Raises:
            ConfigError: weights that are trained are of 16 bits, and nobody keeps them in 32.
        """
        for model in filter(None, (self.model, self.ref_model)):
            batch_windows(self.accelerator.unwrap_model(model), vision_attn_implementation)
        if freeze_vision_tower:
            freeze_tower(self.model)
        check_trained_weights(self.model, self.args, master_weights)
        self._master_weights = master_weights

    def _use_parts(
        self, feed: Feed, run_state: RunState, log: LogArguments, max_bad_steps: int
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
        self.train_stream, self.train_loader = feed.train_stream, feed.train_loader
        self.eval_loader = feed.eval_loader

    def close(self) -> None:
        """Ends the reading threads. Iterating again is not possible afterwards."""
        self._feed.close()

    # ---------------------------------------------------------------- what a trainer answers

    @property
    def _has_packed_groups(self) -> bool:
        """Whether groups are one row each; before the first rollout, whether that is expected."""
        raise NotImplementedError

    @property
    def _prompt_collator(self) -> PromptCollator | None:
        """What asks the policy; None where batches are made by a collator of the user's."""
        raise NotImplementedError

    def _sums_of_trl(self) -> dict[str, Any]:
        """What trl has gathered in memory alone, see :attr:`Gathered.completions`."""
        raise NotImplementedError

    def _restore_sums_of_trl(self, saved: dict[str, Any]) -> None:
        raise NotImplementedError

    # ---------------------------------------------------------------- data and position

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Batch]:  # noqa: ARG002
        """Replaces ``Trainer.get_eval_dataloader`` (transformers 5.23, trl 1.16).

        accelerate must not deal the stream out to ranks: it gives this rank its own part already.
        """
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

    def set_initial_training_values(
        self, args: TrainingArguments, dataloader: Any
    ) -> tuple[Any, ...]:
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

        Also sets the micro-step counter, which upstream's checkpoints lack: it counts from the
        epoch's start, where a generation begins in any case. A finished run that is started again
        is left as it is: upstream would make one more update.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        length = self._feed.begin_epoch(kwargs["epoch"])  # a segment is shorter than its epoch
        kwargs["steps_in_epoch"] = length.num_micro_steps
        kwargs["num_update_steps_per_epoch"] = length.num_updates
        self._step = length.start
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
            self._restore_sums_of_trl(gathered.completions)
            self._observer.bad_steps.num = gathered.num_bad_steps

    # ---------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Extends ``Trainer._save_checkpoint`` (transformers 5.23, trl 1.16): whole or not at all.

        Adds position and run state. Older checkpoints go only when the new one is whole.

        Raises:
            CheckpointError: this rank could not write its part.
        """
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        gathered = Gathered(
            self.run_metrics.state(),
            self._tr_loss,
            self._globalstep_last_logged,
            self._sums_of_trl(),
            self._observer.bad_steps.num,
        )
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
        collator = self._prompt_collator
        if self.args.should_save and collator is not None:
            task = Task(collator.template, collator.answer_frame, collator.chat_template_kwargs)
            write_task(output_dir or self.args.output_dir, task)

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

    # ---------------------------------------------------------------- optimizer and DeepSpeed

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer._prepare_for_training`` (transformers 5.23): layers of few hooks.

        DeepSpeed's engine is made there; a reference model's was made by trl.
        """
        is_wanted = self._has_packed_groups and zero_stage_of(self.args) == 3
        if is_wanted and self.ref_model is not None:
            make_leaves(self.ref_model)
        with leaf_layers(self.model, is_wanted=is_wanted):
            return super()._prepare_for_training(*args, **kwargs)

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
        """Extends ``Trainer._load_optimizer_and_scheduler`` (transformers 5.23, trl 1.16).

        DeepSpeed leaves parts of its universal form as they are; all optimizers come with the
        settings of before; and a reference model that moves is not loaded upstream.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        self._run_state.restore_optimizer(self.optimizer, self.lr_scheduler, engine)
        self._run_state.restore_reference(self.ref_model)

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

    # ---------------------------------------------------------------- time and log

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer.get_batch_samples`` (transformers 5.23): the wait for data is timed."""
        with self.phases("data_wait"):
            return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer.training_step`` (transformers 5.23, trl 1.16): timed.

        It is an update, unless a phase inside says else.
        """
        with self.phases("update"):
            return super().training_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer.evaluate`` (transformers 5.23, trl 1.16): timed."""
        with self.phases("evaluate"):
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Extends ``Trainer.log`` (transformers 5.23, trl 1.16): asks for each log's own numbers.

        Those are what is gathered between two logs of training.
        """
        if "loss" in logs:
            self.run_metrics.ask()
        if "train_runtime" in logs:  # the end: trackers are closed next
            self._observer.wait()
        super().log(logs, start_time)
