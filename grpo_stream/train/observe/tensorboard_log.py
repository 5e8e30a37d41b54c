"""TensorBoard's log of a resumed run: one folder, one value a step."""

from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

_PATTERN = "events.out.tfevents.*"


class ResumedTensorBoard(TensorBoardCallback):
    """transformers' callback; a resumed run writes where the run has written before.

    What was logged after the checkpoint is purged: TensorBoard leaves out the steps that a later
    file begins with (``purge_step`` of torch's ``SummaryWriter``).
    """

    tb_writer: Any
    logging_dir: str | None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Extends ``TensorBoardCallback.on_train_begin`` (transformers 5.23)."""
        if state.is_world_process_zero and state.global_step and self.tb_writer is None:
            found = self.logging_dir or last_log(Path(args.output_dir))
            if found is not None:
                self.logging_dir = str(found)
                after = state.global_step + 1  # a step is logged before its checkpoint is written
                self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=after)
        super().on_train_begin(args, state, control, **kwargs)


def last_log(output_dir: Path) -> Path | None:
    """The folder below ``output_dir/runs`` that was written to last; None where there is none."""
    files = (output_dir / "runs").glob(f"*/{_PATTERN}")
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else newest.parent


def resume_tensorboard(callback_handler: Any) -> None:
    """Puts :class:`ResumedTensorBoard` in the place of transformers' own, if that is there."""
    callbacks = callback_handler.callbacks
    for place, callback in enumerate(callbacks):
        if type(callback) is TensorBoardCallback:
            callbacks[place] = ResumedTensorBoard(callback.tb_writer)
