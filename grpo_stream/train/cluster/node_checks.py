"""What one node has and can reach, measured within seconds and without torch."""

import json
import os
import shutil
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_stream.errors import GrpoStreamError, ManifestError, StoreError
from grpo_stream.printable import mask_secrets
from grpo_stream.shards.linked_sets import with_sources
from grpo_stream.shards.manifest import MANIFEST_NAME
from grpo_stream.storage.retrying_store import RetryingStore, RetryRules, open_retrying

RULES = RetryRules(
    max_delay_seconds=0.5,
    retry_deadline_seconds=4.0,
    connect_timeout_seconds=2.0,
    stall_timeout_seconds=3.0,
    request_timeout_seconds=6.0,
)
"""A store that does not answer is known after about seven seconds."""

_HEAD_BYTES = 64 * 2**10
_READ_BYTES = 2**20
_NUM_READS = 8
_NUM_LATENCIES = 3


@dataclass(frozen=True)
class StoreProbe:
    """What a few ranged reads of a data set took."""

    url: str
    digest: str | None = None
    """The manifest's, as its head tells it."""
    latency_seconds: float | None = None
    """Shortest of three reads of one byte."""
    bytes_per_second: float | None = None
    """Eight reads at a time, of up to 1 MiB each, of neighbouring shards."""
    error: str | None = None
    """Why it cannot be read; None where it can."""


@dataclass(frozen=True)
class Folder:
    """A folder that the run writes to; it need not be there yet."""

    path: str
    free_bytes: int
    error: str | None = None
    """Why it cannot be written."""


@dataclass(frozen=True)
class NodeReport:
    """What the first rank of a node found."""

    stores: Sequence[StoreProbe]
    output: Folder
    cache: Folder | None
    host_bytes: int | None
    """Free memory."""


def probe_node(
    urls: Sequence[str], output_dir: str, cache_dir: str | None, rank: int
) -> NodeReport:
    """Reads a little of every data set, and looks at folders and memory.

    Args:
        urls: Data sets.
        output_dir: Where checkpoints go.
        cache_dir: Of the shard cache, if there is one.
        rank: Of the process that asks; spreads the nodes over the shards.
    """
    return NodeReport(
        [probe_store(url, start=rank, takes_whole=cache_dir is not None) for url in urls],
        check_folder(output_dir),
        None if cache_dir is None else check_folder(cache_dir),
        free_host_bytes(),
    )


def probe_store(url: str, *, start: int = 0, takes_whole: bool = False) -> StoreProbe:
    """Reads the head of a data set's manifest and a little of its first shards: at most 8.1 MB.

    Args:
        url: Where the data set is.
        start: Which of the shards that the head names to begin with, so that the nodes of a run
            do not all ask for the same objects.
        takes_whole: A server that ignores ranges is no error, as with a cache folder.
    """
    shown = mask_secrets(url)
    try:
        store = open_retrying(url, RULES)
        lines = _head_lines(store)
        digest, shards = _head_of(lines)
        latency = min(_seconds(store, MANIFEST_NAME, 1) for _ in range(_NUM_LATENCIES))
        if not shards:  # written by other hands; whether it is a manifest, its reader says
            return StoreProbe(shown, digest, latency)
        chosen = [shards[(start + n) % len(shards)] for n in range(_NUM_READS)]
        sizes = [min(_READ_BYTES, num_bytes) for _, num_bytes in chosen]
        sources: Sequence[str] = next((one["sources"] for one in lines if "sources" in one), [])
        where = with_sources(store, sources, lambda other: open_retrying(other, RULES))
        begin = time.perf_counter()
        with ThreadPoolExecutor(_NUM_READS, "preflight") as pool:
            for future in [
                pool.submit(where.read_range, name, 0, size)
                for (name, _), size in zip(chosen, sizes, strict=True)
            ]:
                future.result()
        rate = sum(sizes) / (time.perf_counter() - begin)
    except StoreError as error:
        if error.cause == "range_ignored" and takes_whole:
            return StoreProbe(shown)
        return StoreProbe(shown, error=mask_secrets(str(error)))
    except GrpoStreamError as error:
        return StoreProbe(shown, error=mask_secrets(str(error)))
    return StoreProbe(shown, digest, latency, rate)


def read_head(store: RetryingStore) -> tuple[str | None, list[tuple[str, int]]]:
    """Digest, and name and size in bytes of the first shards, from a manifest's first 64 KiB.

    The whole of a manifest of a million shards would be 180 MB; it has one shard a line.

    Raises:
        StoreError: it cannot be read.
        ManifestError: there is none.
    """
    return _head_of(_head_lines(store))


def _head_lines(store: RetryingStore) -> list[dict[str, Any]]:
    try:
        head = store.read_range(MANIFEST_NAME, 0, min(store.size(MANIFEST_NAME), _HEAD_BYTES))
    except StoreError as error:
        if error.cause != "not_found":
            raise
        raise ManifestError(f"{store.url}: has no {MANIFEST_NAME}") from error
    texts = (line.strip().rstrip(",") for line in head.decode("utf-8", "replace").splitlines())
    return [_parsed(text if text.startswith("{") else f"{{{text}}}") for text in texts]


def _head_of(lines: Sequence[dict[str, Any]]) -> tuple[str | None, list[tuple[str, int]]]:
    digest: str | None = None
    shards: list[tuple[str, int]] = []
    for found in lines:
        digest = found.get("digest", digest)
        if isinstance(found.get("name"), str) and isinstance(found.get("num_bytes"), int):
            shards.append((found["name"], found["num_bytes"]))
    return digest, shards


def check_folder(path: str) -> Folder:
    """Whether a folder can be written, or made, and the free bytes of its disk."""
    there = Path(path).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Folder(path, 0, str(error))
    if not there.is_dir():
        return Folder(path, free, f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        return Folder(path, free, f"{there} cannot be written")
    return Folder(path, free)


def free_host_bytes() -> int | None:
    """Memory that processes here may still take: the machine's, or less by the container's limit.

    Sources: ``MemAvailable`` of ``/proc/meminfo``, ``memory.max`` and ``memory.current`` of cgroup
    version 2. None where there are no such files.
    """
    lines = _text("/proc/meminfo").splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        free.append(max(0, int(limit) - int(used)))
    return min(free) if free else None


def node_name() -> str:
    """This machine's name, without its domain."""
    return socket.gethostname().partition(".")[0]


def slowest(probes: Sequence[StoreProbe]) -> tuple[float | None, float | None]:
    """The lowest rate (bytes per second) and the longest latency (seconds) among ``probes``."""
    rates = [p.bytes_per_second for p in probes if p.bytes_per_second is not None]
    latencies = [p.latency_seconds for p in probes if p.latency_seconds is not None]
    return min(rates, default=None), max(latencies, default=None)


def _seconds(store: RetryingStore, name: str, num_bytes: int) -> float:
    start = time.perf_counter()
    store.read_range(name, 0, num_bytes)
    return time.perf_counter() - start


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # another line than these, or the one that the head ends in
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
