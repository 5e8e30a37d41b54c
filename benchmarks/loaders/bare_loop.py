"""What loaders are measured against: reading tars and decoding, with as little as can be done."""

import json
import multiprocessing
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.loaders.job import Job, Measured

BARE = "bare"


def read_tar(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members by suffix, in the tar's order: as little as can be done to read ustar."""
    key, members = "", dict[str, bytes]()
    with path.open("rb") as file:
        while (header := file.read(512)).strip(b"\0"):
            name = header[:100].rstrip(b"\0").decode()
            size = int(header[124:135], 8)
            stem, _, suffix = name.partition(".")
            if stem != key and members:
                yield key, members
                members = {}
            key = stem
            members[suffix] = file.read(size)
            file.read(-size % 512)
    if members:
        yield key, members


def tars_in(folder: str) -> list[Path]:
    """The shards, in order."""
    return sorted(Path(folder).glob("*.tar"))


def image_of(members: dict[str, Any]) -> bytes:
    """The image among the members of a sample."""
    return next(bytes(members[name]) for name in ("jpg", "png", "webp") if name in members)


def bare(job: Job) -> Iterator[Measured | None]:
    """Reads and decodes in as many processes as the job has workers, and throws all away.

    Each process has shards of its own, and starts to count when all of them are warm.

    Yields:
        None when all are warm, then what each turn took.
    """
    context = multiprocessing.get_context("fork")  # of a process with one thread
    barrier = context.Barrier(job.num_workers + 1)
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_bare_part, args=(job, part, barrier, results))
        for part in range(job.num_workers)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    yield None
    for _ in range(max(1, job.num_turns)):
        barrier.wait()
        parts = [results.get() for _ in processes]
        yield Measured(
            num_samples=sum(part["num_samples"] for part in parts),
            seconds=max(part["end"] for part in parts) - min(part["start"] for part in parts),
            cpu_seconds=sum(part["cpu_seconds"] for part in parts),
            first_batch_seconds=max(part["first_batch_seconds"] for part in parts),
        )
    for process in processes:
        process.join()


def _bare_part(job: Job, part: int, barrier: Any, results: Any) -> None:
    opened = time.perf_counter()
    tars = tars_in(job.shards)
    own = tars[part :: job.num_workers] or tars
    samples = (sample for tar in cycle(own) for sample in read_tar(tar))
    _consume(job, samples, job.batch_size)
    first_batch_seconds = time.perf_counter() - opened
    _consume(job, samples, job.num_warm_up // job.num_workers)
    barrier.wait()
    num_samples = max(1, job.num_samples // job.num_workers)
    for _ in range(max(1, job.num_turns)):
        barrier.wait()
        start, cpu = time.perf_counter(), time.process_time()
        _consume(job, samples, num_samples)
        results.put(
            {
                "num_samples": num_samples,
                "start": start,
                "end": time.perf_counter(),
                "cpu_seconds": time.process_time() - cpu,
                "first_batch_seconds": first_batch_seconds,
            }
        )


def _consume(job: Job, samples: Iterator[tuple[str, dict[str, bytes]]], num_samples: int) -> None:
    for _ in range(num_samples):
        _, members = next(samples)
        json.loads(members["json"])
        image = image_of(members)
        if not job.is_raw:
            job.pixels(image)
