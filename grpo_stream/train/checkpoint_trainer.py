"""``trl.GRPOTrainer`` that can be killed: whole checkpoints, and a resume that is the same run.

transformers and DeepSpeed write weights, optimizer, schedule and random generators. What they lack
is added here: the cursor, the bad samples, what was gathered since the last log, and the
generation batch in use. And a checkpoint counts only when all of it is on the disk
(:mod:`grpo_stream.train.checkpoints.whole_checkpoint`).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.trainer_utils import rotate_checkpoints

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.checkpoints.universal import (
    fitting_marker,
    load_universal,
    restore_groups,
    universal_in,
    zero_stage_of,
)
from grpo_stream.train.checkpoints.whole_checkpoint import (
    Marker,
    begin,
    last_checkpoint,
    seal,
    sync,
)
from grpo_stream.train.observe.metrics import stream_metrics
from grpo_stream.train.stream_trainer import StreamTrainer

RUN_STATE_NAME = "run_state_{rank}.pt"
"""File of a checkpoint, one per rank: what was gathered since the last log, the batch in use."""


class CheckpointTrainer(StreamTrainer):
    """The part of the trainer that saves and goes on.

    Used through :class:`grpo_stream.train.trainer.PersonalizedGRPOTrainer`.
    """

    _generation: tuple[list[str], dict[str, Any]] | None = None
    """Keys of the generation batch in use, and its scored completions."""
    _marker: Marker | None = None
    """Of the checkpoint that is resumed from."""
    _run_state: dict[str, Any] | None = None
    """What it holds of this rank, until that is restored."""

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Extends ``Trainer.train`` (transformers 5.23): only whole checkpoints are resumed from.

        Raises:
            CheckpointError: the checkpoint is not whole.
            ConfigError: it does not fit this run, or True was given and there is none.
        """
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            found = last_checkpoint(Path(self.args.output_dir), looks=self.args.should_save)
            if found is None:
                expected = f"finds no whole checkpoint in {self.args.output_dir}; use None"
                raise ConfigError("resume_from_checkpoint", True, expected)
            checkpoint = str(found)
        self._marker = None
        if checkpoint:
            self._marker = fitting_marker(Path(checkpoint), self.args)
        return super().train(checkpoint or None, *args, **kwargs)

    # ---------------------------------------------------------------- saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Extends ``Trainer._save_checkpoint`` (transformers 5.23): whole or not at all.

        Older checkpoints are removed only when the new one is whole.

        Raises:
            CheckpointError: this rank could not write its part.
        """
        run_folder = self._get_output_dir(trial)
        folder = Path(run_folder) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with self.phases("checkpoint"):
                self._write_whole(folder, model, trial)
        except Exception as error:
            if not _is_of_writing(error):
                raise
            raise CheckpointError(_unwritten(folder, error)) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(run_folder, limit, best, use_mtime=True)

    def _write_whole(self, folder: Path, model: Any, trial: Any) -> None:
        if self.args.should_save:
            begin(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._write_position(folder)
        self._write_run_state(folder)
        super()._save_checkpoint(model, trial)
        if self.args.local_process_index == 0:
            sync(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(
                folder,
                num_ranks=self.args.world_size,
                zero_stage=zero_stage_of(self.args),
                is_resumable=not self.args.save_only_model,
            )

    def _write_run_state(self, folder: Path) -> None:
        generation = None
        if self._generation is not None and self._step % self._micro_steps.num_repeats:
            keys, scored = self._generation
            generation = {"keys": keys, "scored": _on_cpu(scored)}
        state = {
            "generation": generation,
            "metrics": {mode: dict(values) for mode, values in self._metrics.items()},
            "loss": self._tr_loss.cpu(),
            "global_step_logged": self._globalstep_last_logged,
            "completions": json.dumps(self._logs, default=_as_plain),
        }
        torch.save(state, folder / RUN_STATE_NAME.format(rank=self.args.process_index))

    # ---------------------------------------------------------------- going on

    def _enter(self, checkpoint: Path) -> int:
        """Extends ``StreamTrainer._enter``: reads what this rank has to restore."""
        done = super()._enter(checkpoint)
        self._run_state = None
        if self._is_of_these_ranks:
            path = checkpoint / RUN_STATE_NAME.format(rank=self.args.process_index)
            self._run_state = torch.load(path, weights_only=True, map_location="cpu")
        elif self.is_deepspeed_enabled:
            load_universal(self.accelerator.state.deepspeed_plugin.deepspeed_config)
        return done

    @property
    def _is_of_these_ranks(self) -> bool:
        return self._marker is not None and self._marker.num_ranks == self.args.world_size

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Extends ``Trainer._run_epoch`` (transformers 5.23): goes on gathering for the log.

        A finished run that is started again is left as it is: upstream would make one more update.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        state = self._run_state
        if state is not None and kwargs["epoch"] == self._start.epoch:
            for mode, values in state["metrics"].items():
                self._metrics[mode].clear()
                self._metrics[mode].update(values)
            self._tr_loss = state["loss"].to(self.args.device)
            # ``train_loss``, at the end, is the mean over the global steps of this start.
            self._total_loss_scalar = -self._tr_loss.item()
            self._globalstep_last_logged = state["global_step_logged"]
            _refill(self._logs, json.loads(state["completions"]))
        super()._run_epoch(*args, **kwargs)

    def _saved_generation(self, keys: list[str]) -> dict[str, Any] | None:
        """The scored completions of a batch that was in use when the checkpoint was written.

        Every rank must call this when it resumes within a batch. They all get theirs or none does:
        sampling takes all ranks.

        Args:
            keys: Of the batch as it was read now; a sample may have become bad meanwhile.
        """
        state, self._run_state = self._run_state, None
        saved = None if state is None else state["generation"]
        is_same = saved is not None and saved["keys"] == keys
        everyone = self.accelerator.gather(torch.tensor([is_same], device=self.args.device))
        if saved is None or not bool(everyone.all()):
            return None
        self._metrics_logged = stream_metrics(self.train_loader)  # that batch is in the log
        scored: dict[str, Any] = {
            name: value.to(self.args.device) if isinstance(value, torch.Tensor) else value
            for name, value in saved["scored"].items()
        }
        return scored

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Extends ``Trainer._load_optimizer_and_scheduler`` (transformers 5.23)."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and self.is_deepspeed_enabled and not self._is_of_these_ranks:
            restore_groups(self.model_wrapped.optimizer.optimizer, universal_in(Path(checkpoint)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Replaces ``Trainer._load_from_checkpoint`` (transformers 5.23) for whole models.

        Checkpoints of Qwen2.5-VL name their weights as its first files did. transformers looks for
        the model's own names in them, without the renaming of ``from_pretrained``, and would go on
        with the weights that the run began with (huggingface/transformers issue 43701). DeepSpeed
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


def _on_cpu(scored: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.cpu() if isinstance(value, torch.Tensor) else value
        for name, value in scored.items()
    }


def _as_plain(value: Any) -> Any:
    """Of trl's completions for the log: a deque as a list, anything unknown as its text."""
    try:
        return list(value)
    except TypeError:
        return str(value)


def _refill(logs: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        if isinstance(value, dict):
            _refill(logs[name], value)
        else:
            logs[name].clear()
            logs[name].extend(value)


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
