"""``python -m benchmarks.loaders.timed_run JOB``: times a loader; prints JSON after each turn.

The clock runs over the samples after the warm-up, while workers are in full swing, so neither
imports nor the start of processes count. CPU seconds are those of all processes, those that have
ended included. With ``num_turns`` the process stops itself when it is warm and after every turn:
see ``turns.py``.
"""

import json
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks.loaders.bare_loop import BARE, bare
from benchmarks.loaders.job import Job, Measured
from benchmarks.loaders.turns import wait_for_turn
from benchmarks.peers.peers import for_ever, opener


def cpu_seconds() -> float:
    """User and system time of this process and all below it."""
    own = psutil.Process()
    total: float = time.process_time() + sum(own.cpu_times()[2:4])
    for child in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:4])
    return total


def measure(job: Job, open_loader: Callable[[Job], Any]) -> Iterator[Measured | None]:
    """Times the batches of a loader; with a ``state`` from there on.

    Yields:
        None when it is warm, then what each turn took.
    """
    step = Step(job)
    start = time.perf_counter()
    loader = open_loader(job)
    if job.state:
        _resume(loader, Path(job.state))
    batches = for_ever(loader)
    keys = tuple(next(batches)["key"])
    first_batch_seconds = time.perf_counter() - start
    num_before = len(keys)
    while num_before < job.num_warm_up:
        step.work()
        num_before += len(next(batches)["key"])
    yield None
    for _ in range(max(1, job.num_turns)):
        step.seconds = []
        start, cpu = time.perf_counter(), cpu_seconds()
        num_samples = 0
        while num_samples < job.num_samples:
            step.work()
            num_samples += len(next(batches)["key"])
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        yield Measured(num_samples, seconds, cpu, first_batch_seconds, keys, step.slowdown)
    batches.close()


def save_state(job: Job, open_loader: Callable[[Job], Any]) -> Iterator[Measured]:
    """Reads ``num_batches_before`` and writes the state; the keys are the next batch's."""
    loader = open_loader(job)
    batches = for_ever(loader)
    for _ in range(job.num_batches_before):
        next(batches)
    is_energon = hasattr(loader, "save_state_rank")
    state = loader.save_state_rank() if is_energon else loader.state_dict()
    with Path(job.state).open("wb") as file:
        pickle.dump(state, file)
    keys = tuple(next(batches)["key"])
    batches.close()
    yield Measured(len(keys), 0, 0, 0, keys)


def _resume(loader: Any, path: Path) -> None:
    state = pickle.loads(path.read_bytes())  # noqa: S301 - written by the function above
    if hasattr(loader, "restore_state_rank"):
        loader.restore_state_rank(state)
    else:
        loader.load_state_dict(state)


class Step:
    """A training step's stand-in: matrix products in the main thread for ``step_seconds``."""

    def __init__(self, job: Job) -> None:
        self.seconds: list[float] = []
        """What each step took."""
        self._alone = job.step_seconds
        self._count = 0
        if self._alone:
            matrix: Any = import_module("torch").ones(job.step_side, job.step_side)
            self._multiply = partial(matrix.matmul, matrix)
            self._run(100)
            self._count = max(1, round(self._alone / min(self._run(50) / 50 for _ in range(9))))
            self._alone = min(self._run(self._count) for _ in range(3))

    def work(self) -> None:
        """Does one step."""
        if self._count:
            self.seconds.append(self._run(self._count))

    @property
    def slowdown(self) -> float:
        """Mean time of a step, relative to one with nothing at work beside it."""
        return statistics.mean(self.seconds) / self._alone if self.seconds else 1.0

    def _run(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self._multiply()
        return time.perf_counter() - start


def run_here(job: Job) -> Iterator[Measured | None]:
    """Runs a job in this process: None when the loader is warm, then what each turn took."""
    if job.contestant == BARE:
        return bare(job)
    run = save_state if job.num_batches_before else measure
    return run(job, opener(job.contestant))


def main() -> None:
    """Runs the job that is the only argument."""
    job = Job(**json.loads(sys.argv[1]))
    for measured in run_here(job):
        if measured is not None:
            print(json.dumps({"measured": asdict(measured)}), flush=True)
        if job.num_turns:
            wait_for_turn()


if __name__ == "__main__":
    main()
