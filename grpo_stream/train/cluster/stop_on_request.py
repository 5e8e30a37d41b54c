"""Ending a run in good order: someone asks, all ranks agree, a checkpoint is saved."""

import signal
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from grpo_stream.train.cluster.early_end import EarlyEnd, Handler

logger = logging.get_logger("grpo_stream.train")

EXIT_STOPPED = 75
"""Exit code of a run that was asked to end and saved a checkpoint: ``EX_TEMPFAIL``, try again."""

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C, as a shell gives it."""

STOP_FILE = "stop"
"""Name of the file in the run's output folder that asks it to end."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask the rank which receives them, and through it all ranks, to end."""


class StopOnRequest(TrainerCallback):
    """Ends training after the global step during which somebody asked for it.

    A signal to any rank asks, or a file ``stop`` in the output folder, which works through every
    launcher. The ranks add up who was asked, in one collective of an integer per global step, so
    that all of them save and end after the same one. Before the first step of this start there is
    nothing to save: a signal, Ctrl-C too, then ends the process at once.

    Attributes:
        has_stopped: Training was ended before its last global step.
    """

    def __init__(self) -> None:
        self.has_stopped = False
        self._received: signal.Signals | None = None
        codes = dict.fromkeys(SIGNALS, EXIT_STOPPED) | {signal.SIGINT: EXIT_INTERRUPTED}
        self._early: EarlyEnd | None = EarlyEnd(codes)

    def listen(self) -> None:
        """From now on signals end this process, and once training has begun ask it to.

        For the main thread.
        """
        if self._early is not None:
            self._early.begin()

    def end_before_training(self) -> None:
        """Signals do what they did before ``listen``, unless training has begun."""
        if self._early is not None:
            self._early.restore()

    def is_asked(self) -> bool:
        """Whether this rank has received a signal."""
        return self._received is not None

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Overrides ``TrainerCallback.on_step_begin`` (transformers 5.23): now signals only ask."""
        if self._early is not None:
            asking: dict[signal.Signals, Handler] = dict.fromkeys(SIGNALS, self._receive)
            self._early.finish(asking | {signal.SIGINT: signal.default_int_handler})
        self._early = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Overrides ``TrainerCallback.on_step_end`` (transformers 5.23)."""
        stop_file = Path(str(args.output_dir)) / STOP_FILE
        by_file = state.is_world_process_zero and stop_file.exists()
        if not _sum(int(by_file or self._received is not None), args.device):
            return
        if self._received is not None:
            logger.warning("stop: rank %d received %s", args.process_index, self._received.name)
        control.should_training_stop = control.should_save = True
        control.should_evaluate = False  # whoever asks gives little time
        self.has_stopped = state.global_step < state.max_steps
        if state.is_world_process_zero:
            stop_file.unlink(missing_ok=True)
            logger.warning("stop: after global step %d, with a checkpoint", state.global_step)

    def _receive(self, number: int, _frame: object) -> None:
        # Once is enough. In a storm handlers would be called within handlers until the stack is
        # full; and while Python ends it gives up its handlers, and a signal would end the process.
        signal.signal(number, signal.SIG_IGN)
        self._received = signal.Signals(number)


def _sum(number: int, device: torch.device) -> int:
    total = torch.tensor(number, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return int(total.item())
