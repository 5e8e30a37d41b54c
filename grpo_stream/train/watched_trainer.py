"""``trl.GRPOTrainer`` under observation: phases of a step, a watchdog, rates in the log."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer

from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.observe.difficulty_log import DifficultyLog
from grpo_stream.train.observe.metrics import Work, step_metrics
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.observe.rollout_sheets import FOLDER_NAME as SHEETS_NAME
from grpo_stream.train.observe.rollout_sheets import (
    Rollout,
    RolloutSheets,
    show_in_trackers,
    weighted_rewards,
)
from grpo_stream.train.observe.watchdog import FOLDER_NAME as STALLS_NAME
from grpo_stream.train.observe.watchdog import Watchdog
from grpo_stream.train.setup.arguments import LogArguments


class WatchedTrainer(GRPOTrainer):
    """The part of the trainer that says where its time goes and where it stands.

    Used through :class:`grpo_stream.train.trainer.PersonalizedGRPOTrainer`.
    """

    phases: Phases
    """Stopwatch of this rank."""

    def _observe(self, settings: LogArguments) -> None:
        self.phases = Phases()
        self.log_settings = settings
        self._work = Work()
        self._logged: tuple[dict[str, float], Work, int] | None = None
        folder = Path(self.args.output_dir)
        is_shown = self.args.process_index == 0
        self._sheets = RolloutSheets(
            folder / SHEETS_NAME,
            every_steps=settings.rollout_sheet_steps if is_shown else 0,
            num_groups=settings.rollout_sheet_groups,
            show=show_in_trackers(self.callback_handler, self.args.report_to),
        )
        self._difficulty: DifficultyLog | None = None
        if settings.difficulty_log:
            self._difficulty = DifficultyLog(folder, is_writing=is_shown)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer._inner_training_loop`` (transformers 5.23): a run begins."""
        self._logged = None
        return super()._inner_training_loop(*args, **kwargs)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        limit = self.log_settings.step_timeout_seconds
        if not limit:
            yield
            return
        watchdog = Watchdog(
            self.phases,
            limit_seconds=limit,
            folder=Path(self.args.output_dir) / STALLS_NAME,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            global_step=lambda: self.state.global_step,
            in_use=self._in_use,
        )
        watchdog.start()
        try:
            yield
        finally:
            watchdog.stop()

    def _in_use(self, stage: str) -> Sequence[str]:  # noqa: ARG002 - for those who know more
        """What a stage works on, for people."""
        return self.phases.keys

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Extends ``Trainer._run_epoch`` (transformers 5.23): watched, and the optimizer timed.

        DeepSpeed's engine takes its step at the end of ``backward``, in the midst of an update.
        """
        stepping = self.model_wrapped if self.is_deepspeed_enabled else self.optimizer
        self.phases.time_calls(stepping, "step", "optimizer")
        if self._logged is None:  # what was done before is not part of the first step
            self.phases.restart()
            self._logged = self._done()
        with self._watched():
            super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer.get_batch_samples`` (transformers 5.23): the wait for data."""
        with self.phases("data_wait"):
            return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Extends ``GRPOTrainer.training_step`` (trl 1.16): an update, unless one says else."""
        with self.phases("update"):
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def _begin_rollout(self, batch: Batch) -> None:
        """Notes the prompts that are worked on from now on."""
        self.phases.keys = batch["key"]
        self._batch = batch

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], *args: Any
    ) -> torch.Tensor:
        """Extends ``GRPOTrainer._calculate_rewards`` (trl 1.16): timed, and shown."""
        with self.phases("rewards"):
            rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, *args)
        if self.model.training:
            self._show(completions, rewards.cpu())
        return rewards

    def _show(self, completions: list[Any], rewards: torch.Tensor) -> None:
        """Offers this rank's rollout to be drawn; ``rewards`` are those of all ranks."""
        parts, weights = rewards.numpy(), self.reward_weights.cpu().numpy()
        start = self.accelerator.process_index * len(completions)
        own = parts[start : start + len(completions)]
        names = self.reward_func_names
        step, size = self.state.global_step, self.num_generations
        self._rollout_shown = Rollout(self._batch, completions, own, names, weights, size)
        self._sheets.offer(self._rollout_shown, step)
        if self._difficulty is not None:
            self._difficulty.add(step, self._batch["key"], weighted_rewards(parts, weights, size))

    def _generate(self, prompts: list[Any]) -> Any:
        """Extends ``GRPOTrainer._generate`` (trl 1.16): counts the work of all ranks."""
        generated = super()._generate(prompts)
        if self.model.training:
            num_completions = len(prompts) * self.accelerator.num_processes
            mean_length = self._metrics["train"]["completions/mean_length"][-1]
            self._work.num_samples += num_completions // self.num_generations
            self._work.num_completion_tokens += round(mean_length * num_completions)
        return generated

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Extends ``Trainer.evaluate`` (transformers 5.23): timed."""
        with self.phases("evaluate"):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Extends ``GRPOTrainer._save_checkpoint`` (trl 1.16): timed."""
        with self.phases("checkpoint"):
            super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Extends ``GRPOTrainer.log`` (trl 1.16): times and rates of the global steps logged."""
        if "loss" in logs and self._logged is not None:
            seconds, work, step = self._logged
            self._logged = self._done()
            passed = {n: total - seconds.get(n, 0.0) for n, total in self._logged[0].items()}
            num_steps = max(1, self._logged[2] - step)
            logs |= step_metrics(passed, self._logged[1] - work, num_steps)
        if "train_runtime" in logs:  # the end: trackers are closed next
            self._sheets.wait()
        super().log(logs, start_time)

    def _done(self) -> tuple[dict[str, float], Work, int]:
        work = replace(self._work, data_wait_seconds=self._data_wait_seconds())
        return self.phases.totals(), work, self.state.global_step

    def _data_wait_seconds(self) -> float:
        """How long the run has waited for data so far; for those who know."""
        return 0.0
