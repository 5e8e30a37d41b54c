"""How a process ends: by a signal before the first step, and without aborting on the way."""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers
"""What ``signal.signal`` takes."""

_GRACE_SECONDS = 2.0


class EndedEarly(SystemExit):
    """Raised in the main thread by a signal, so that what it does is undone in order."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def end_process(code: int) -> NoReturn:
    """Ends this process after its exit handlers, without ending the interpreter.

    A thread that comes back from C++ code meanwhile, a reader's or one of gloo, would abort the
    process: "terminate called without an active exception", and a run that was a success has
    failed (seen with torch 2.13).
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - trackers close their runs there
    leave_now(code)


def leave_now(code: int) -> NoReturn:
    """Ends this process without its exit handlers, which may wait for other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class EarlyEnd:
    """Ends this process within seconds after a signal, whatever the main thread is doing.

    Python runs handlers between two lines of Python; code of torch that waits for another rank
    does not come to that. So a thread is told as well: it ends the process where the main thread
    has not done so by then.

    Args:
        codes: Signals, and the process's exit code after each.
        end: Ends the process.
        grace_seconds: How long the main thread has for it.
    """

    def __init__(
        self,
        codes: Mapping[signal.Signals, int],
        *,
        end: Callable[[int], object] = leave_now,
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        self._codes = dict(codes)
        self._end = end
        self._grace_seconds = grace_seconds
        self._writer: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def begin(self) -> None:
        """From now on. For the main thread."""
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._raise) or signal.SIG_DFL for number in self._codes
        }
        threading.Thread(target=self._watch, args=(reader,), name="early-end", daemon=True).start()

    def finish(self, then: Mapping[signal.Signals, Handler]) -> None:
        """No longer: ``then`` has the handler of each signal. For the main thread."""
        if self._writer is None:
            return
        signal.set_wakeup_fd(-1)
        os.close(self._writer)
        self._writer = None
        for number in self._codes:
            signal.signal(number, then[number])

    def restore(self) -> None:
        """No longer: handlers are those of before ``begin``. For the main thread."""
        self.finish(self._before)

    def _raise(self, number: int, _frame: object) -> None:
        for other in self._codes:  # once is enough: the next would end what this one undoes
            signal.signal(other, signal.SIG_IGN)
        raise EndedEarly(self._codes[signal.Signals(number)])

    def _watch(self, reader: int) -> None:
        while numbers := os.read(reader, 1):
            if numbers[0] in self._codes:
                number = signal.Signals(numbers[0])
                rank = os.environ.get("RANK", "0")
                text = f"rank {rank}: received {number.name} before the first step, so it ends\n"
                sys.stderr.write(text)
                sys.stderr.flush()
                time.sleep(self._grace_seconds)
                self._end(self._codes[number])
        os.close(reader)
