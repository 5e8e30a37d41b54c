"""Chunks as tasks of a Ray cluster: so many in flight, repeated by Ray where a node is gone.

A task is one chunk, which depends on nothing but its records, so Ray may run it on any node, and
once more. Each process looks before its first chunk whether its node may build: one with another
version, or with an output folder of its own, may not.
"""

import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

import grpo_stream
from grpo_stream.errors import ConfigError, GrpoStreamError, StoreError, WorkerDiedError
from grpo_stream.image_encoding import codec_versions
from grpo_stream.storage.store import is_object_store, open_store
from shard_builder.build.chunk_plan import Chunk
from shard_builder.build.chunk_result import News
from shard_builder.build.output.kept_results import SETTINGS_NAME
from shard_builder.build.output.temp_folder import temp_folder
from shard_builder.build.workers.worker import DoneChunk, Job, Worker

MAX_RETRIES = 20
"""Nodes that a task may lose; what fails by itself is not tried again."""
MAX_LOST = 3
"""Times that it is then sent anew, with its records, which Ray does not do."""
_WAITING_PER_TASK = 1
"""Tasks in line for each that runs: a node never waits for the coordinator."""
_SECONDS_BETWEEN_LOOKS = 10.0


@dataclass(frozen=True)
class _Facts:
    """What each process of the cluster is told."""

    job: Job
    settings_sha256: str
    """Of the file that every node must see in the output folder."""
    versions: dict[str, str | None]


class RayCrew:
    """A crew for :mod:`shard_builder.build.workers.worker_pool`.

    Args:
        job: What to do with the chunks; its paths must mean the same on all nodes.
        address: Of a cluster, as ``ray.init`` takes it; None starts one on this machine, unless
            ``RAY_ADDRESS`` names one.

    Raises:
        ConfigError: nothing answers there.
    """

    def __init__(self, job: Job, address: str | None) -> None:
        self._job = replace(
            job,
            out=absolute(job.out),
            state=absolute(job.state),
            images_root=absolute(job.images_root),
        )
        # While a shard is uploaded its task needs no core, so two share one.
        self._num_cpus = 0.5 if is_object_store(job.out) else 1.0
        self._in_flight: dict[Any, tuple[Chunk, int]] = {}
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            connect(address)

    def run(self, chunks: Iterator[Chunk], tell: Callable[[News], None]) -> Iterator[DoneChunk]:
        """See :func:`~shard_builder.build.workers.worker_pool.run_chunks`."""
        task = ray.remote(num_cpus=self._num_cpus, max_retries=MAX_RETRIES)(_build_chunk)
        facts = self._facts()
        in_flight = self._in_flight
        is_all_given = False
        while True:
            while not is_all_given and len(in_flight) < self._max_in_flight():
                chunk = next(chunks, None)
                if chunk is None:
                    is_all_given = True
                else:
                    in_flight[task.remote(facts, chunk)] = (chunk, 0)
            if not in_flight:
                return
            # Not without an end: meanwhile nodes may come, and this thread may be interrupted.
            done, _ = ray.wait(list(in_flight), num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
            for ref in done:
                chunk, num_lost = in_flight.pop(ref)
                result = result_of_task(ref, is_last_try=num_lost == MAX_LOST)
                if result is None:
                    in_flight[task.remote(facts, chunk)] = (chunk, num_lost + 1)
                    continue
                for one in result[1]:
                    tell(one)
                yield result[0]

    def stop(self) -> None:
        """Drops what is in flight and leaves the cluster, which ends if it was started for this."""
        for ref in self._in_flight:
            ray.cancel(ref)
        if self._is_ours:
            ray.shutdown()

    def _facts(self) -> _Facts:
        found = open_store(self._job.state).read(SETTINGS_NAME)
        return _Facts(self._job, hashlib.sha256(found).hexdigest(), _versions())

    def _max_in_flight(self) -> int:
        return num_slots(self._num_cpus) * (1 + _WAITING_PER_TASK)


def connect(address: str | None) -> None:
    """Joins a cluster, or starts one here; raises ConfigError where none answers."""
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        line = (str(error).splitlines() or [""])[0]
        expected = (
            f"no Ray cluster answers there ({line}): start one with `ray start --head`, then give "
            "auto on its machines, or ray://HOST:10001 from elsewhere"
        )
        raise ConfigError("--ray-address", address or "", expected) from error


def num_slots(num_cpus: float = 1.0) -> int:
    """Tasks of ``num_cpus`` cores that the cluster runs at a time; 1 at least."""
    return max(1, int(ray.cluster_resources().get("CPU", 1.0) / num_cpus))


def result_of_task(ref: Any, *, is_last_try: bool) -> Any:
    """What a task gave; None where it, or the records that it was sent, were lost on their way.

    Raises:
        WorkerDiedError: that, at the last try.
        GrpoStreamError, OSError: what the task raised.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, ray.exceptions.RayError):
            if not is_last_try:
                return None
            line = (str(cause).splitlines() or [""])[0]
            raise WorkerDiedError(
                f"a task of Ray was lost again and again, the last time so: {line}; what is "
                "finished is kept: run the same command again"
            ) from error
        if isinstance(cause, (GrpoStreamError, OSError)):
            raise cause from error
        raise RuntimeError(f"a task of Ray failed:\n{error}") from error


_workers: dict[str, Worker] = {}
_until_the_end = ExitStack()


def _build_chunk(facts: _Facts, chunk: Chunk) -> tuple[DoneChunk, list[News]]:
    """The task: runs in a process of some node, which it shares with tasks before and after it."""
    key = facts.settings_sha256 + facts.job.out
    if key not in _workers:
        _check_node(facts)
        while _workers:
            _workers.popitem()[1].close()
        temp = _until_the_end.enter_context(temp_folder())
        _workers[key] = Worker(replace(facts.job, spool=temp / "spool"))
    heard: list[News] = []
    return _workers[key].build(chunk, heard.append).result(), heard


def _check_node(facts: _Facts) -> None:
    host = node_name()
    mine = _versions()
    for name, version in facts.versions.items():
        if mine.get(name) != version:
            expected = (
                f"node {host} has {name} {mine.get(name)}, this machine {version}: install the "
                "same versions on all nodes"
            )
            raise ConfigError("--executor", "ray", expected)
    try:
        found = hashlib.sha256(open_store(facts.job.state).read(SETTINGS_NAME)).hexdigest()
    except StoreError:
        found = ""
    if found != facts.settings_sha256:
        expected = (
            f"node {host} does not see what this machine has begun there: must be a bucket, or a "
            "folder that all nodes share under one path"
        )
        raise ConfigError("--out", facts.job.out, expected)


def node_name() -> str:
    """This machine, for messages."""
    return socket.gethostname()


def _versions() -> dict[str, str | None]:
    return {"grpo_stream": grpo_stream.__version__, **codec_versions()}


def absolute(url: str) -> str:
    """A folder's whole path: tasks do not run in the folder that the command was given in."""
    return url if "://" in url else str(Path(url).resolve())
