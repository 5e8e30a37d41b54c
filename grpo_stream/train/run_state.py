"""What a checkpoint holds besides weights, so that a resumed run is the same run.

transformers and DeepSpeed write weights, optimizer, schedule and random generators. What they lack
is added here: what was gathered since the last log, and the generation batch in use. And a
checkpoint counts only when all of it is on the disk
(:mod:`grpo_stream.train.checkpoints.whole_checkpoint`).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from trl import GRPOConfig

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.checkpoints.optimizer_settings import OptimizerSettings
from grpo_stream.train.checkpoints.output_folder import OutputFolder
from grpo_stream.train.checkpoints.reference import (
    check_reference,
    load_reference,
    save_reference,
)
from grpo_stream.train.checkpoints.universal import (
    fitting_marker,
    load_universal,
    restore_groups,
    universal_in,
)
from grpo_stream.train.checkpoints.whole_checkpoint import Marker, last_checkpoint, sync

RUN_STATE_NAME = "run_state_{rank}.pt"
"""File of a checkpoint, one per rank: what was gathered since the last log, the batch in use."""


class Gathered(NamedTuple):
    """What is in memory alone: gathered by transformers and trl since the last log; a count."""

    metrics: dict[str, dict[str, list[float]]]
    """Mode, ``train`` or ``eval`` -> name -> values."""
    loss: torch.Tensor
    """Sum over the micro-steps."""
    global_step_logged: int
    completions: dict[str, Any]
    """trl's columns of the table of completions: sequences, or mappings of some."""
    num_bad_steps: int = 0
    """Of the run."""


class RunState:
    """Whole checkpoints, and what is read back from one.

    Args:
        args: The run's settings: where checkpoints are, and which rank this is.
        accelerator: accelerate's, ready.
        old_checkpoints: What becomes of other runs' checkpoints in the output folder.
        master_weights: Who keeps float32 weights: an optimizer's state depends on it.
    """

    def __init__(
        self,
        args: GRPOConfig,
        accelerator: Any,
        old_checkpoints: str = "refuse",
        master_weights: str = "none",
    ) -> None:
        self._args = args
        self._accelerator = accelerator
        self.output = OutputFolder(args, old_checkpoints)
        """Where checkpoints are."""
        self.optimizer_settings = OptimizerSettings(args, master_weights)
        """What optimizer and schedule are made with."""
        self._marker: Marker | None = None
        self._checkpoint: Path | None = None
        self._read: dict[str, Any] = {}
        self._generation: tuple[list[str], dict[str, Any]] | None = None

    # ---------------------------------------------------------------- resuming

    def choose(self, resume_from: str | bool | None) -> str | None:
        """The checkpoint that a run resumes from; every rank must call this.

        Args:
            resume_from: Its path, True for the last whole one, None or False for none.

        Raises:
            CheckpointError: the checkpoint is not whole.
            ConfigError: it does not fit this run, or True was given and there is none; or the
                output folder holds checkpoints of another run, see ``old_checkpoints``.
        """
        if resume_from is True:
            output_dir = Path(self._args.output_dir)
            found = last_checkpoint(output_dir, looks=self._args.should_save)
            if found is None:
                expected = f"finds no whole checkpoint in {output_dir}; use None"
                raise ConfigError("resume_from_checkpoint", True, expected)
            resume_from = str(found)
        self._marker = None
        if resume_from:
            self._marker = fitting_marker(Path(resume_from), self._args)
            self.optimizer_settings.check(Path(resume_from))
            check_reference(Path(resume_from), self._args)
        self.output.enter(Path(resume_from) if resume_from else None, self._marker)
        return resume_from or None

    def begin_run(self, checkpoint: str | None) -> None:
        """Notes what the run resumes from; None: it begins anew."""
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._read = {}

    @property
    def checkpoint(self) -> Path | None:
        """What the run resumes from."""
        return self._checkpoint

    @property
    def is_universal(self) -> bool:
        """Whether the checkpoint is of another number of ranks: DeepSpeed's universal form."""
        return self._marker is None or self._marker.num_ranks != self._args.world_size

    def read(self) -> None:
        """Reads what this rank has to restore, if the run resumes."""
        if self._checkpoint is None:
            return
        plugin = getattr(self._accelerator.state, "deepspeed_plugin", None)
        if not self.is_universal:
            path = self._checkpoint / RUN_STATE_NAME.format(rank=self._args.process_index)
            self._read = torch.load(path, weights_only=True, map_location="cpu")
        elif plugin is not None:
            load_universal(plugin.deepspeed_config)

    def take_gathered(self) -> Gathered | None:
        """What the checkpoint's run had gathered for the log; once."""
        if "metrics" not in self._read:
            return None
        return Gathered(
            self._read.pop("metrics"),
            self._read.pop("loss"),
            self._read.pop("global_step_logged"),
            json.loads(self._read.pop("completions")),
            self._read.pop("num_bad_steps", 0),
        )

    def take_generation(self, keys: list[str]) -> dict[str, Any] | None:
        """The scored completions of a batch that was in use when the checkpoint was written; once.

        Every rank must call this when it resumes within a batch. They all get theirs or none does:
        sampling takes all ranks.

        Args:
            keys: Of the batch as it was read now; a sample may have become bad meanwhile.
        """
        saved = self._read.pop("generation", None)
        is_same = saved is not None and saved["keys"] == keys
        device = self._args.device
        everyone = self._accelerator.gather(torch.tensor([is_same], device=device))
        if saved is None or not bool(everyone.all()):
            return None
        return _moved(saved["scored"], device)

    def restore_optimizer(
        self, optimizer: torch.optim.Optimizer, scheduler: Any, engine: Any | None
    ) -> None:
        """Puts right what was loaded: by DeepSpeed, and of settings that are others now.

        Args:
            optimizer: With the checkpoint's state.
            scheduler: With the checkpoint's state.
            engine: DeepSpeed's, if any.
        """
        checkpoint = self._checkpoint
        if checkpoint is None:
            return
        if engine is not None and self.is_universal:
            restore_groups(engine.optimizer.optimizer, universal_in(checkpoint))
        if engine is not None and hasattr(engine.optimizer, "clip_grad"):
            engine.optimizer.clip_grad = engine.gradient_clipping()  # ZeRO-1 and -2 load that, too
        self.optimizer_settings.apply(optimizer, scheduler, checkpoint)

    def restore_reference(self, model: torch.nn.Module | None) -> None:
        """Takes a reference model to where it had moved; every rank must call this."""
        if self._checkpoint is not None and model is not None:
            load_reference(self._accelerator.unwrap_model(model), self._checkpoint)

    # ---------------------------------------------------------------- saving

    def use_generation(self, keys: list[str], scored: dict[str, Any]) -> None:
        """Notes the generation batch that is trained on from now on: keys and scored completions.

        A checkpoint written within the batch holds it.
        """
        self._generation = keys, scored

    @contextmanager
    def whole(self, folder: Path) -> Iterator[None]:
        """Makes of what all ranks write inside a whole checkpoint, or none.

        Raises:
            CheckpointError: this rank could not write its part.
        """
        try:
            self.output.begin(folder)
            self._accelerator.wait_for_everyone()
            with self.output.rotating_itself():
                yield
            if self._args.local_process_index == 0:
                sync(folder)
            self._accelerator.wait_for_everyone()
            self.output.seal(folder)
        except Exception as error:
            if not _is_of_writing(error):
                raise
            raise CheckpointError(_unwritten(folder, error)) from error

    def write(
        self,
        folder: Path,
        gathered: Gathered,
        reference: torch.nn.Module | None,
        *,
        is_in_use: bool,
    ) -> None:
        """Writes this rank's file of a checkpoint, and what a run has once.

        Args:
            folder: The checkpoint.
            gathered: For the log.
            reference: The reference model, if there is one.
            is_in_use: Whether the last generation batch that was noted is still trained on.
        """
        writes = self._args.should_save
        if writes:
            self.optimizer_settings.write(folder)
        if reference is not None and self._args.sync_ref_model:
            save_reference(self._accelerator.unwrap_model(reference), folder, writes=writes)
        generation = None
        if self._generation is not None and is_in_use:
            keys, scored = self._generation
            generation = {"keys": keys, "scored": _moved(scored, "cpu")}
        state = {
            "generation": generation,
            "metrics": gathered.metrics,
            "loss": gathered.loss.cpu(),
            "global_step_logged": gathered.global_step_logged,
            "completions": json.dumps(gathered.completions, default=_as_plain),
            "num_bad_steps": gathered.num_bad_steps,
        }
        torch.save(state, folder / RUN_STATE_NAME.format(rank=self._args.process_index))


def refill_columns(columns: dict[str, Any], saved: dict[str, Any]) -> None:
    """Gives trl's bounded columns of :attr:`Gathered.completions` their saved values again."""
    for name, value in saved.items():
        if isinstance(value, dict):
            refill_columns(columns[name], value)
        else:
            columns[name].clear()
            columns[name].extend(value)


def _moved(scored: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in scored.items()
    }


def _as_plain(value: Any) -> Any:
    """Of trl's completions for the log: a deque as a list, anything unknown as its text."""
    try:
        return list(value)
    except TypeError:
        return str(value)


def _is_of_writing(error: Exception) -> bool:
    """Whether a file could not be written; another rank that is gone is another matter."""
    if isinstance(error, ConnectionError | TimeoutError):
        return False
    # torch.save reports a full disk in words alone.
    is_torchs = isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)
    return is_torchs or isinstance(error, OSError | SafetensorError)


def _unwritten(folder: Path, error: Exception) -> str:
    free = shutil.disk_usage(folder.parent).free / 1e9
    return (
        f"{folder} could not be written ({type(error).__name__}: {error}); {free:.1f} GB are free "
        "there. Older checkpoints are as they were: make room, or give another output_dir or a "
        "lower save_total_limit, and start the same command again"
    )
