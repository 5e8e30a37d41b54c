"""TensorBoard's log of a run: one folder and one value a step, and never the end of the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.utils import logging

logger = logging.get_logger("grpo_stream.train")

_PATTERN = "events.out.tfevents.*"


class SafeTensorBoard(TensorBoardCallback):
    """transformers' callback; a resumed run writes where the run has written before.

    What was logged after the checkpoint is purged: TensorBoard leaves out the steps that a later
    file begins with (``purge_step`` of torch's ``SummaryWriter``). A disk that takes no more ends
    this log with a warning.
    """

    tb_writer: Any
    _SummaryWriter: Any
    logging_dir: str | None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Extends ``TensorBoardCallback.on_train_begin`` (transformers 5.23)."""
        with self._ending_on_errors():
            if state.is_world_process_zero and state.global_step and self.tb_writer is None:
                found = self.logging_dir or last_log(Path(args.output_dir))
                if found is not None:
                    self.logging_dir = str(found)
                    after = state.global_step + 1  # a step is logged before its checkpoint
                    self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=after)
            super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Extends ``TensorBoardCallback.on_log`` (transformers 5.23)."""
        with self._ending_on_errors():
            super().on_log(*args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Extends ``TensorBoardCallback.on_train_end`` (transformers 5.23)."""
        with self._ending_on_errors():
            super().on_train_end(*args, **kwargs)

    @contextmanager
    def _ending_on_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("no more is written to TensorBoard's log: %s", error)
            self.tb_writer = self._SummaryWriter = None  # the callback then writes nothing


def last_log(output_dir: Path) -> Path | None:
    """The folder below ``output_dir/runs`` that was written to last; None where there is none."""
    files = (output_dir / "runs").glob(f"*/{_PATTERN}")
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else newest.parent


def make_tensorboard_safe(callback_handler: Any) -> None:
    """Puts :class:`SafeTensorBoard` in the place of transformers' own, if that is there."""
    callbacks = callback_handler.callbacks
    for place, callback in enumerate(callbacks):
        if type(callback) is TensorBoardCallback:
            callbacks[place] = SafeTensorBoard(callback.tb_writer)
