"""What waits before the first step says for what, so that nobody takes it for dead."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_FIRST_SECONDS, _NEXT_SECONDS = 10.0, 60.0


@contextmanager
def waiting_for(
    what: str | Callable[[], str], first_seconds: float = _FIRST_SECONDS
) -> Iterator[None]:
    """Says after ``first_seconds``, and then every minute, what the code inside waits for.

    The first rank of each node says it, on stderr and from a thread of its own: C code that waits
    lets other threads run.

    Args:
        what: In words; a function is called when they are needed.
        first_seconds: Until it is said for the first time.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    done = threading.Event()

    def say() -> None:
        pause = waited = first_seconds
        while not done.wait(pause):
            words = what if isinstance(what, str) else what()
            rank = os.environ.get("RANK", "0")
            # As one write: the lines of several ranks share a terminal.
            sys.stderr.write(f"rank {rank}: has waited {waited:.0f} s for {words}\n")
            sys.stderr.flush()
            pause = _NEXT_SECONDS
            waited += pause

    thread = threading.Thread(target=say, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class WaitForFirstStep(TrainerCallback):
    """:func:`waiting_for` optimizer, checkpoint and first batch: the time around ``train()``."""

    def __init__(self) -> None:
        self._waiting = ExitStack()

    def __enter__(self) -> None:
        self._waiting.enter_context(waiting_for("optimizer, checkpoint and first batch"))

    def __exit__(self, *_: object) -> None:
        self._waiting.close()

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Overrides ``TrainerCallback.on_step_begin`` (transformers 5.23)."""
        self._waiting.close()
