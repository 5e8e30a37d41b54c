"""``python -m tools.bench.timed_run JOB``: times one loader; prints a line of JSON.

The clock runs over the samples after the warm-up, while workers are in full swing, so neither
imports nor the start of processes count. CPU seconds are those of all processes, those that have
ended included.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict

import psutil

from tools.bench.bare_loop import BARE, bare
from tools.bench.job import Batch, Job, Measured
from tools.bench.peers import opener


def cpu_seconds() -> float:
    """User and system time of this process and all below it."""
    own = psutil.Process()
    total: float = time.process_time() + sum(own.cpu_times()[2:4])
    for child in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:4])
    return total


def measure(job: Job, open_batches: Callable[[Job], Iterator[Batch]]) -> Measured:
    """Times the batches of an opened loader."""
    work = _step_work(job.step_seconds)
    start = time.perf_counter()
    batches = open_batches(job)
    first = next(batches)
    first_batch_seconds = time.perf_counter() - start
    keys, num_before = tuple(first["key"]), len(first["key"])
    while num_before < job.num_warm_up:
        work()
        num_before += len(next(batches)["key"])
    start, cpu = time.perf_counter(), cpu_seconds()
    num_samples, step_seconds = 0, 0.0
    while num_samples < job.num_samples:
        step_seconds += work()
        num_samples += len(next(batches)["key"])
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    return Measured(
        num_samples,
        seconds,
        cpu,
        first_batch_seconds,
        keys,
        counters={"step_seconds": step_seconds},
    )


def _step_work(seconds: float) -> Callable[[], float]:
    """A step's stand-in: matrix products that take ``seconds`` when nothing runs beside them."""
    if not seconds:
        return lambda: 0.0
    import torch  # noqa: PLC0415 - only for jobs with a step

    matrix = torch.ones(256, 256)

    def products(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            matrix @ matrix
        return time.perf_counter() - start

    products(20)
    count = max(1, round(seconds / min(products(50) / 50 for _ in range(5))))
    return lambda: products(count)


def main() -> None:
    """Runs the job that is the only argument."""
    job = Job(**json.loads(sys.argv[1]))
    measured = bare(job) if job.contestant == BARE else measure(job, opener(job.contestant))
    print(json.dumps({"measured": asdict(measured)}), flush=True)


if __name__ == "__main__":
    main()
