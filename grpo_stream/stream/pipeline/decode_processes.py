"""Worker processes that decode, for hosts where the trainer's own Python is the bottleneck.

They get bytes and give samples: what is fetched, and in which order, is decided in the rank's own
process, so neither object storage nor a position ever crosses a fork.
"""

import multiprocessing
import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from grpo_stream.errors import WorkerDiedError
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.pipeline.malloc_tuning import keep_freed_memory
from grpo_stream.stream.pipeline.pending_samples import PendingSamples
from grpo_stream.stream.prompt_stream import Open, Outcome, is_damage
from grpo_stream.stream.sources import Encoded


class DecodeProcesses:
    """Processes that end with this one, however it ends.

    Args:
        num_decode_processes: At least 1.
        open_sample: What is made of a sample; see ``dataset.Open``.
        config: Is handed to ``open_sample``.
    """

    def __init__(
        self,
        num_decode_processes: int,
        open_sample: Open,
        config: StreamConfig,
    ) -> None:
        self._open_sample = open_sample
        self._config = config
        # Never a fork of this process: obstore's threads and all locks would not survive it.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        theirs, self._lifeline = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            num_decode_processes, mp_context=context, initializer=_end_with, initargs=(theirs,)
        )

    def submit(self, encoded: Encoded) -> "Future[Outcome]":
        """Checks and opens a sample; the result is how it is damaged, where it is.

        Raises:
            WorkerDiedError: a process was killed before.
        """
        try:
            return self._pool.submit(_open_encoded, encoded, self._open_sample, self._config)
        except BrokenProcessPool as error:
            raise worker_died() from error

    def submit_pending(self, pending: PendingSamples) -> "Future[list[Outcome]]":
        """:meth:`submit` for one sample, once it is there; what failed is in the future."""
        outcome: Future[list[Outcome]] = Future()

        def submit() -> None:
            try:
                task = self.submit(pending.take(0))
            except BaseException as error:  # noqa: BLE001 - it is raised where the sample is needed
                if isinstance(error, Exception) and is_damage(error):
                    outcome.set_result([error])
                else:
                    outcome.set_exception(error)
            else:
                task.add_done_callback(lambda done: _pass_on(done, outcome))

        pending.then(submit)
        return outcome

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()


def worker_died() -> WorkerDiedError:
    """The error for a process that is gone."""
    return WorkerDiedError(
        "a process that decodes images ended: killed from outside, or for want of memory. Nothing "
        "is lost: resume from the last checkpoint, with fewer num_decode_processes if memory ran "
        "out, or with 0, which decodes in threads"
    )


def _pass_on(done: "Future[Outcome]", to: "Future[list[Outcome]]") -> None:
    if done.cancelled():
        to.cancel()
    elif (error := done.exception()) is not None:
        to.set_exception(worker_died() if isinstance(error, BrokenProcessPool) else error)
    else:
        to.set_result([done.result()])


def _open_encoded(encoded: Encoded, open_sample: Open, config: StreamConfig) -> Any:
    try:
        return open_sample(encoded.sample(), config)
    except Exception as error:
        if not is_damage(error):
            raise
        return error


def _end_with(lifeline: Connection) -> None:
    keep_freed_memory()
    threading.Thread(target=_wait_for_end, args=(lifeline,), daemon=True).start()


def _wait_for_end(lifeline: Connection) -> None:
    lifeline.poll(None)  # nothing is ever sent: this returns when the parent is gone
    os._exit(1)
