"""Data sets of random bytes, a store that counts and holds back streams, and a cache over both."""

import contextlib
import errno
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from grpo_stream.shards.cache import ShardCache
from grpo_stream.shards.manifest import Manifest, ShardInfo
from grpo_stream.storage.store import LocalStore

ROOT = Path(__file__).parents[2]
SHARD_BYTES = 1000


class StreamStore(LocalStore):
    """Counts ranged reads and opened streams by name; streams wait for ``gate``."""

    def __init__(self, folder, piece_bytes=None):
        super().__init__(folder)
        self.ranges: Counter[str] = Counter()
        self.streams: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.piece_bytes = piece_bytes
        self.most_asked = 0
        self.broken = None
        self.on_open = lambda _: None

    def read_ranges(self, name, ranges):
        self.ranges[name] += 1
        return super().read_ranges(name, ranges)

    def open_stream(self, name):
        self.streams[name] += 1
        self.on_open(name)
        return _Stream(super().open_stream(name), self, name == self.broken)


class _Stream:
    def __init__(self, file, store, is_broken):
        self._file = file
        self._store = store
        self._is_broken = is_broken

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self, num_bytes):
        if self._is_broken:
            raise OSError(errno.EIO, "bad sector")
        self._store.gate.wait(20)
        self._store.most_asked = max(self._store.most_asked, num_bytes)
        return self._file.read(self._store.piece_bytes or num_bytes)


def make_set(folder, num_shards=4, num_bytes=SHARD_BYTES):
    """Shards ``0.tar``, ``1.tar``, ... of random bytes; ``num_bytes`` may be a list."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = num_bytes if isinstance(num_bytes, list) else [num_bytes] * num_shards
    shards = []
    for number, size in enumerate(sizes):
        (folder / f"{number}.tar").write_bytes(random.Random(number).randbytes(size))
        shards.append(ShardInfo(f"{number}.tar", 1, size, f"{folder.name}-{number}-{size}"))
    manifest = Manifest(1, tuple(shards))
    manifest.save(LocalStore(folder))
    return manifest


def open_cache(data, folder, max_bytes=10**6, store=None, **options):
    store = store or StreamStore(data)
    return ShardCache(store, Manifest.load(store), folder, max_bytes, **options)


def content(data, name):
    """The bytes of a shard of :func:`make_set`."""
    return (data / name).read_bytes()


def names(*numbers):
    return [f"{number}.tar" for number in numbers]


def cached(folder):
    """Names of the whole shards in the cache folder."""
    return sorted(path.name for path in folder.glob("grpo-stream-*/*") if path.name[0] != ".")


def parts(folder):
    """Names of the unfinished files."""
    return sorted(path.name for path in folder.glob("grpo-stream-*/.*"))


def used_bytes(folder):
    """Sum of all file sizes, as anybody looking at the folder would take it."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size if not path.is_dir() else 0
    return total


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def bring(cache, wanted):
    """Announces shards and waits until this cache holds them."""
    cache.announce(wanted)
    wait_for(lambda: set(wanted) <= set(cache._fetcher._held))


def start_process(code, *args):
    """A Python process that runs ``code``; its standard input and output are pipes of text."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
