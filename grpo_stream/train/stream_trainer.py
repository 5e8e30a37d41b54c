"""``trl.GRPOTrainer`` on a prompt stream: its batches and its position."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.batches.eval_batches import EvalBatches, EvalLoader
from grpo_stream.train.batches.micro_steps import MicroStepDataset, first_of
from grpo_stream.train.batches.synced_reader import ReadTogether
from grpo_stream.train.checkpoints.position import (
    Position,
    SavedPosition,
    StepCount,
    check_updates,
    check_whole_epochs,
)
from grpo_stream.train.observe.metrics import stream_metrics
from grpo_stream.train.watched_trainer import WatchedTrainer

CURSOR_NAME = "cursor.json"
"""File of a checkpoint that holds the stream's position."""
QUARANTINE_NAME = "quarantine.json"
"""File of a checkpoint that lists the bad samples that the run has met, if any."""


class StreamTrainer(WatchedTrainer):
    """The part of the trainer that feeds it and knows where it stands.

    Used through :class:`grpo_stream.train.trainer.PersonalizedGRPOTrainer`.
    """

    def _read_streams(
        self,
        train_stream: PromptStream,
        eval_stream: PromptStream | None,
        *,
        allow_new_lanes: bool,
    ) -> None:
        """Starts nothing yet: reading begins with the first batch that is asked for."""
        self.train_stream = train_stream
        self.train_loader = PromptLoader(train_stream, self.data_collator)
        self.eval_loader: EvalLoader | None = None
        if eval_stream is not None:
            self.eval_loader = EvalLoader(eval_stream, self.data_collator)
            self._eval_batches = EvalBatches(self.eval_loader)
        self._reader = ReadTogether(self.train_loader)
        self._micro_steps = MicroStepDataset(
            self._reader, self.args.steps_per_generation * self.num_iterations
        )
        self._allow_new_lanes = allow_new_lanes
        self._resume_from: str | None = None
        self._start = Position(0, 0)
        self._micro_batches: list[dict[str, Any]] | None = None
        self._metrics_logged: dict[str, float] = {}

    # ---------------------------------------------------------------- data

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Overrides ``GRPOTrainer.get_train_dataloader`` (trl 1.16).

        trl repeats records inside the data set and lets accelerate deal them out to ranks. Here
        the stream already gives this rank its own prompts, once each, so neither may touch it:
        one item per micro-step, the same batch for all micro-steps of one generation.
        """
        return DataLoader(self._micro_steps, batch_size=1, collate_fn=first_of)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Batch]:
        """Overrides ``GRPOTrainer.get_eval_dataloader`` (trl 1.16), as for training."""
        if self.eval_loader is None:
            raise ConfigError("eval_dataset", eval_dataset, "none was given to the trainer")
        return DataLoader(self._eval_batches, batch_size=1, collate_fn=first_of)

    def _in_use(self, stage: str) -> Sequence[str]:
        """Extends ``WatchedTrainer._in_use``: where the samples lie that are waited for."""
        if stage != "data_wait":
            return super()._in_use(stage)
        stream, steps = self.train_stream, self._micro_steps
        batch_index = self._step // steps.num_repeats
        columns = stream.plan.places(steps.epoch, range(batch_index, batch_index + 1), stream.slots)
        rows = zip(*(column.flatten().tolist() for column in columns), strict=True)
        return [stream.sources[source].describe(shard, sample) for source, shard, sample in rows]

    def _data_wait_seconds(self) -> float:
        """Overrides ``WatchedTrainer._data_wait_seconds``."""
        return self._reader.wait_seconds

    def num_examples(self, dataloader: DataLoader[Batch]) -> int:
        """Overrides ``Trainer.num_examples`` (transformers 5.23): prompts of an epoch."""
        reader: ReadTogether[Batch] = dataloader.dataset.reader  # type: ignore[attr-defined]
        stream = reader.loader.stream
        return stream.num_batches * stream.config.num_lanes

    def prediction_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """Extends ``GRPOTrainer.prediction_step`` (trl 1.16): a batch weighs as much as it holds.

        trl logs the mean over batches, and the last one of an evaluation may be smaller.
        """
        metrics = self._metrics["eval"]
        before = {name: len(values) for name, values in metrics.items()}
        result = super().prediction_step(model, inputs, *args, **kwargs)
        for name, values in metrics.items():
            values.extend(values[before.get(name, 0) :] * (inputs["num_prompts"] - 1))
        return result

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        """Extends ``GRPOTrainer._calculate_rewards`` (trl 1.16): repeats are left out by NaN."""
        rewards: torch.Tensor = super()._calculate_rewards(*args)
        if not self.model.training:
            rewards[self._batch["num_prompts"] * self.num_generations_eval :] = torch.nan
        return rewards

    # ---------------------------------------------------------------- position

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer._inner_training_loop`` (transformers 5.23): notes the checkpoint.

        The run's length, which is computed first, depends on the position that it holds.
        """
        self._resume_from = kwargs.get("resume_from_checkpoint")
        return super()._inner_training_loop(*args, **kwargs)

    def set_initial_training_values(
        self, args: GRPOConfig, dataloader: DataLoader[Batch]
    ) -> tuple[Any, ...]:
        """Extends ``Trainer.set_initial_training_values`` (transformers 5.23): finds the position.

        Epochs and global steps are upstream's, unless batch sizes were changed before or are
        changed now: then the global steps done and those left add up to the run.
        """
        values: tuple[Any, ...] = super().set_initial_training_values(args, dataloader)
        num_epochs, *middle, max_steps = values
        done = 0
        self._start = Position(0, 0)
        if self._resume_from is not None:
            done = self._enter(Path(self._resume_from))
        steps = self._step_count()
        per_epoch = steps.updates_in(self.train_stream.plan.segments_epoch + 1)
        is_usual = self._start == _usual_position(done, per_epoch, args.gradient_accumulation_steps)
        if not is_usual or self.train_stream.plan.segments:
            if args.max_steps > 0:
                left = max(0, max_steps - done)
                num_epochs = steps.end(self._start, left)[0] + 1
            else:
                check_whole_epochs(args.num_train_epochs)
                max_steps = done + steps.updates_until(self._start, num_epochs)
        self.train_loader.until = steps.end(self._start, max(0, max_steps - done))
        return num_epochs, *middle, max_steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Extends ``Trainer._init_training_state`` (transformers 5.23): the cursor's position."""
        super()._init_training_state(*args, **kwargs)
        return self._start

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Extends ``Trainer._run_epoch`` (transformers 5.23): tells the stream the epoch.

        Also sets trl's micro-step counter, which its checkpoints lack: it counts from the epoch's
        start, where a generation begins in any case.
        """
        epoch = kwargs["epoch"]
        self._micro_steps.epoch = epoch
        # A segment is shorter than its epoch.
        steps = self._step_count()
        kwargs["steps_in_epoch"] = steps.micro_steps_in(epoch)
        kwargs["num_update_steps_per_epoch"] = steps.updates_in(epoch)
        self._step = self._start.micro_step if epoch == self._start.epoch else 0
        self._micro_batches = None
        super()._run_epoch(*args, **kwargs)

    def close(self) -> None:
        """Ends the reading threads. Iterating again is not possible afterwards."""
        for loader in (self.train_loader, self.eval_loader):
            if loader is not None:
                loader.close()

    def _write_position(self, folder: Path) -> None:
        """Writes the position, and the bad samples that were met, into a checkpoint."""
        (folder / CURSOR_NAME).write_text(json.dumps(self._position().to_dict(), indent=1))
        bad = self._reader.bad_samples
        if bad.quarantine:
            (folder / QUARANTINE_NAME).write_text(json.dumps(bad.to_dict(), indent=1))

    def _position(self) -> SavedPosition:
        """The first generation batch that is not done; one in use counts as not done."""
        batch_index, in_use = divmod(self._step, self._micro_steps.num_repeats)
        place = self.train_stream.plan.place_after(self._micro_steps.epoch, batch_index)
        of = self._micro_steps.num_repeats
        return SavedPosition(self.train_stream.cursor(*place), (in_use, of))

    def _enter(self, checkpoint: Path) -> int:
        """Takes the stream to a checkpoint's position; the global steps that it has done."""
        read = SavedPosition.from_dict(json.loads((checkpoint / CURSOR_NAME).read_text()))
        saved = read.enter(self.train_stream, allow_new_lanes=self._allow_new_lanes)
        done: int = TrainerState.load_from_json(checkpoint / TRAINER_STATE_NAME).global_step
        repeats = self._micro_steps.num_repeats
        if saved.micro_steps_in_use is None:  # an older checkpoint: as transformers counts
            in_use = done * self.args.gradient_accumulation_steps % repeats
            saved = replace(saved, micro_steps_in_use=(in_use, repeats))
        self._start = Position(saved.cursor.epoch, saved.micro_step(repeats))
        bad = checkpoint / QUARANTINE_NAME
        self._reader.go_on(json.loads(bad.read_text())["samples"] if bad.is_file() else {})
        check_updates(self._start, self._step_count())
        return done

    def _step_count(self) -> StepCount:
        repeats, update = self._micro_steps.num_repeats, self.args.gradient_accumulation_steps
        return StepCount(self.train_stream.plan, repeats, update)

    def _log_stream(self) -> None:
        """Logs what the stream did: since the last generation batch, or so far for bad samples.

        Bad samples are those of all ranks; all else is of the rank that logs.
        """
        metrics = self._metrics["train"]
        bad = self._reader.bad_samples.num_by_cause
        metrics["stream/num_bad_samples"].append(bad.total())
        for cause, number in bad.items():
            metrics[f"stream/bad/{cause}"].append(number)
        now = stream_metrics(self.train_loader)
        for name, value in now.items():
            metrics[f"stream/{name}"].append(value - self._metrics_logged.get(name, 0.0))
        self._metrics_logged = now


def _usual_position(num_done: int, updates_per_epoch: int, micro_steps_per_update: int) -> Position:
    """Where transformers places a run after ``num_done`` global steps."""
    epoch, updates = divmod(num_done, updates_per_epoch)
    return Position(epoch, updates * micro_steps_per_update)
