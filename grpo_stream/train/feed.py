"""What the trainer is fed with: batches of its streams, and where the run is in the data."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from grpo_stream.errors import ConfigError
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.batches.eval_batches import EvalBatches, EvalLoader
from grpo_stream.train.batches.micro_steps import MicroStepDataset, first_of
from grpo_stream.train.batches.synced_reader import SyncedReader
from grpo_stream.train.checkpoints.position import (
    Position,
    SavedPosition,
    StepCount,
    check_updates,
    check_whole_epochs,
)
from grpo_stream.train.observe.metrics import RunMetrics, stream_metrics

CURSOR_NAME = "cursor.json"
"""File of a checkpoint that holds the stream's position."""
QUARANTINE_NAME = "quarantine.json"
"""File of a checkpoint that lists the bad samples that the run has met, if any."""


class RunLength(NamedTuple):
    """How long a run is, as transformers counts."""

    num_epochs: int
    """Epochs that are begun, from epoch 0."""
    max_steps: int
    """Global steps, those before a resume included."""


class EpochLength(NamedTuple):
    """How long an epoch is, or what segments left of it, and where the run begins in it."""

    num_micro_steps: int
    num_updates: int
    start: int
    """Micro-step."""


class Feed:
    """Batches of the training and the evaluation stream, and the position in the former.

    Nothing is read before the first batch is asked for. The trainer counts micro-steps from the
    start of an epoch and passes that number where a position is asked for.

    Args:
        train_stream: Of this rank.
        eval_stream: Of this rank, for evaluation while training.
        collate: From samples to a batch.
        args: The run's settings: how often a generation batch is used, and how many micro-steps
            make an update.
        allow_new_lanes: A checkpoint of another number of prompts per generation batch is resumed
            from, over exactly what is left of its epoch, instead of being refused.
        num_repeats: Micro-steps that use a batch of the stream; None: as GRPO's settings say.
    """

    def __init__(
        self,
        train_stream: PromptStream,
        eval_stream: PromptStream | None,
        collate: Callable[[Sequence[Any]], Batch],
        args: TrainingArguments,
        *,
        allow_new_lanes: bool = False,
        num_repeats: int | None = None,
    ) -> None:
        self.train_stream = train_stream
        self.train_loader = PromptLoader(train_stream, collate)
        self.eval_loader = None if eval_stream is None else EvalLoader(eval_stream, collate)
        self._eval_batches = None if self.eval_loader is None else EvalBatches(self.eval_loader)
        self._reader = SyncedReader(self.train_loader)
        if num_repeats is None:
            num_repeats = args.steps_per_generation * args.num_iterations
        self._micro_steps = MicroStepDataset(self._reader, num_repeats)
        self._args = args
        self._allow_new_lanes = allow_new_lanes
        self._start = Position(0, 0)
        self._counters_logged: dict[str, float] = {}

    # ---------------------------------------------------------------- batches

    def train_batches(self) -> DataLoader[Batch]:
        """One item per micro-step of the present epoch: its generation batch."""
        return DataLoader(self._micro_steps, batch_size=1, collate_fn=first_of)

    @property
    def micro_steps(self) -> MicroStepDataset:
        """Maps each micro-step of the present epoch to its batch of the stream."""
        return self._micro_steps

    def eval_batches(self) -> DataLoader[Batch]:
        """The batches of an evaluation.

        Raises:
            ConfigError: there is no evaluation stream.
        """
        if self._eval_batches is None:
            raise ConfigError("eval_dataset", None, "none was given to the trainer")
        return DataLoader(self._eval_batches, batch_size=1, collate_fn=first_of)

    def in_use(self, micro_step: int) -> int:
        """How many micro-steps of its generation batch are done before ``micro_step``."""
        return micro_step % self._micro_steps.num_repeats

    def awaited(self, micro_step: int) -> Sequence[str]:
        """Where the samples are that ``micro_step`` needs, for people."""
        stream, steps = self.train_stream, self._micro_steps
        batch_index = micro_step // steps.num_repeats
        columns = stream.plan.places(steps.epoch, range(batch_index, batch_index + 1), stream.slots)
        rows = zip(*(column.flatten().tolist() for column in columns), strict=True)
        return [stream.sources[source].describe(shard, sample) for source, shard, sample in rows]

    @property
    def bad_samples(self) -> dict[str, str]:
        """Where the bad samples are that all ranks have met, and their causes."""
        return self._reader.bad_samples.quarantine

    @property
    def data_wait_seconds(self) -> float:
        """How long all have waited: for each generation batch the rank that waited longest."""
        return self._reader.wait_seconds

    def close(self) -> None:
        """Ends the reading threads. Iterating again is not possible afterwards."""
        for loader in (self.train_loader, self.eval_loader):
            if loader is not None:
                loader.close()

    # ---------------------------------------------------------------- counters

    def log_counters(self, metrics: RunMetrics) -> None:
        """Logs what the stream did: since the last generation batch, or so far for bad samples.

        Bad samples are those of all ranks; all else is of the rank that logs.
        """
        bad = self._reader.bad_samples.num_by_cause
        metrics.log_metric("train", "stream/num_bad_samples", bad.total())
        for cause, number in bad.items():
            metrics.log_metric("train", f"stream/bad/{cause}", number)
        before = self._counters_logged
        self.skip_counters()
        for name, value in self._counters_logged.items():
            metrics.log_metric("train", f"stream/{name}", value - before.get(name, 0.0))

    def skip_counters(self) -> None:
        """What the stream did until now is in the log already."""
        self._counters_logged = stream_metrics(self.train_loader)

    # ---------------------------------------------------------------- position

    def begin_run(self, length: RunLength, checkpoint: Path | None) -> RunLength:
        """Takes the stream to where the run begins, and returns how long the run is.

        Epochs and global steps are transformers', unless batch sizes were changed before or are
        changed now: then the global steps done and those left add up to the run.

        Args:
            length: As transformers counts it.
            checkpoint: To resume from.

        Raises:
            ConfigError: the settings do not fit the checkpoint.
            CursorError: the checkpoint is of another order.
        """
        done, self._start = 0, Position(0, 0)
        if checkpoint is not None:
            done = self._enter(checkpoint)
        steps, start = self._step_count(), self._start
        per_epoch = steps.updates_in(self.train_stream.plan.segments_epoch + 1)
        is_usual = start == _usual_position(done, per_epoch, self._args.gradient_accumulation_steps)
        if not is_usual or self.train_stream.plan.segments:
            if self._args.max_steps > 0:
                left = max(0, length.max_steps - done)
                length = length._replace(num_epochs=steps.end(start, left)[0] + 1)
            else:
                check_whole_epochs(self._args.num_train_epochs)
                num_updates = steps.updates_until(start, length.num_epochs)
                length = length._replace(max_steps=done + num_updates)
        self.train_loader.until = steps.end(start, max(0, length.max_steps - done))
        return length

    @property
    def start(self) -> Position:
        """Where the run begins, or was resumed."""
        return self._start

    def begin_epoch(self, epoch: int) -> EpochLength:
        """Delivers the batches of ``epoch`` from now on."""
        self._micro_steps.epoch = epoch
        steps = self._step_count()
        start = self._start.micro_step if epoch == self._start.epoch else 0
        return EpochLength(steps.micro_steps_in(epoch), steps.updates_in(epoch), start)

    def write_position(self, folder: Path, micro_step: int) -> None:
        """Writes the position, and the bad samples that were met, into a checkpoint.

        It is that of the first generation batch that is not done; one in use counts as not done.
        """
        repeats = self._micro_steps.num_repeats
        batch_index, in_use = divmod(micro_step, repeats)
        place = self.train_stream.plan.place_after(self._micro_steps.epoch, batch_index)
        position = SavedPosition(self.train_stream.cursor(*place), (in_use, repeats))
        (folder / CURSOR_NAME).write_text(json.dumps(position.to_dict(), indent=1))
        bad = self._reader.bad_samples
        if bad.quarantine:
            (folder / QUARANTINE_NAME).write_text(json.dumps(bad.to_dict(), indent=1))

    def _enter(self, checkpoint: Path) -> int:
        """Takes the stream to a checkpoint's position; the global steps that it has done."""
        read = SavedPosition.from_dict(json.loads((checkpoint / CURSOR_NAME).read_text()))
        saved = read.enter(self.train_stream, allow_new_lanes=self._allow_new_lanes)
        done: int = TrainerState.load_from_json(checkpoint / TRAINER_STATE_NAME).global_step
        repeats = self._micro_steps.num_repeats
        if saved.micro_steps_in_use is None:  # an older checkpoint: as transformers counts
            in_use = done * self._args.gradient_accumulation_steps % repeats
            saved = replace(saved, micro_steps_in_use=(in_use, repeats))
        self._start = Position(saved.cursor.epoch, saved.micro_step(repeats))
        bad = checkpoint / QUARANTINE_NAME
        self._reader.resume(json.loads(bad.read_text())["samples"] if bad.is_file() else {})
        check_updates(self._start, self._step_count())
        return done

    def _step_count(self) -> StepCount:
        repeats = self._micro_steps.num_repeats
        return StepCount(self.train_stream.plan, repeats, self._args.gradient_accumulation_steps)


def num_prompts_of(batches: DataLoader[Batch]) -> int:
    """Prompts of a whole epoch of :meth:`Feed.train_batches` or :meth:`Feed.eval_batches`."""
    reader: SyncedReader[Batch] = batches.dataset.reader  # type: ignore[attr-defined]
    stream = reader.loader.stream
    return stream.num_batches * stream.config.num_lanes


def _usual_position(num_done: int, updates_per_epoch: int, micro_steps_per_update: int) -> Position:
    """Where transformers places a run after ``num_done`` global steps."""
    epoch, updates = divmod(num_done, updates_per_epoch)
    return Position(epoch, updates * micro_steps_per_update)
