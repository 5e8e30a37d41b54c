"""Reading finished shards whole: one sample in memory at a time, several shards at once."""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from grpo_stream.boxes import Point, Size
from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.sample_runs import Run, iter_runs
from grpo_stream.shards.solution_field import Solution
from grpo_stream.shards.tar_headers import BLOCK, iter_members
from grpo_stream.storage.store import Store
from grpo_stream.targets import bounds_of, read_shape

_READ_BYTES = 2**20

OnProgress = Callable[[int, int], object]
"""Is told numbers of samples and of bytes that were done since the last call; from any thread."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def no_progress(num_samples: int, num_bytes: int) -> None:
    """Tells nobody."""


class Reread:
    """One pass over a shard from its first byte to its last.

    Args:
        store: Where it lies.
        name: The shard's file name.
        should_stop: Asked before each sample; the pass breaks off when it says so.
    """

    def __init__(
        self, store: Store, name: str, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.name = name
        self.num_bytes = 0
        """Read so far; the tar's size once :meth:`runs` has ended."""
        self.end = 0
        """Where the end mark starts, once :meth:`runs` has ended."""
        self._store = store
        self._should_stop = should_stop
        self._sha256 = hashlib.sha256()
        self._stream: BinaryIO | None = None

    def runs(self) -> Iterator[Run]:
        """The samples in their order.

        Raises:
            ShardFormatError: the tar is no sound shard; ``trailing_data`` among the causes.
            StoreError: it cannot be read.
        """
        with self._store.open_stream(self.name) as self._stream:
            members = iter_members(cast("BinaryIO", self), self.name, is_whole=True)
            for run in iter_runs(members, self.name):
                if self._should_stop():
                    return
                yield run
            self.end = self.num_bytes - BLOCK
            while data := self.read(_READ_BYTES):
                if data.count(0) < len(data):
                    detail = f"{self.name}: more than zeros behind the tar's end mark"
                    raise ShardFormatError("trailing_data", f"{detail} at byte {self.end}")

    def read(self, num_bytes: int) -> bytes:
        """The next bytes of the shard; what is read is counted and hashed."""
        data = b"" if self._stream is None else self._stream.read(num_bytes)
        self._sha256.update(data)
        self.num_bytes += len(data)
        return data

    def info(self, num_samples: int) -> ShardInfo:
        """The shard's line in the manifest, once :meth:`runs` has ended."""
        return ShardInfo(self.name, num_samples, self.num_bytes, self._sha256.hexdigest())


class KeyBook:
    """Finds out whether any key comes twice, in 8 bytes a key."""

    def __init__(self) -> None:
        self._hashes: list[NDArray[np.int64]] = []

    def add(self, hashes: Sequence[int] | NDArray[np.int64]) -> None:
        """Takes the keys of one shard as :func:`key_hash` gives them."""
        self._hashes.append(np.asarray(hashes, np.int64))

    def holders(self, hashes: set[int]) -> list[int]:
        """Which of the shards, in the order in which they were added, have any of ``hashes``."""
        wanted = np.fromiter(hashes, np.int64)
        return [number for number, some in enumerate(self._hashes) if np.isin(some, wanted).any()]

    def repeated(self) -> set[int]:
        """The hashes that came more than once; equal hashes are not yet equal keys."""
        if not self._hashes:
            return set()
        hashes = np.concatenate(self._hashes)
        hashes.sort()
        return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def key_hash(key: str) -> int:
    """64 bits of a key, the same on all machines."""
    data = key.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def first_repeated_key(
    store: Store, names: Iterable[str], hashes: set[int]
) -> tuple[str, str, str] | None:
    """Looks a key up that :class:`KeyBook` suspects; reads shards until it is found.

    Returns:
        (key, name of the shard where it comes again, name of the shard where it came first), or
        None: only hashes were equal.
    """
    seen: dict[str, str] = {}
    for name in names:
        for run in Reread(store, name).runs():
            key = run.sample.key
            if key_hash(key) in hashes:
                if key in seen:
                    return key, name, seen[key]
                seen[key] = name
    return None


def is_inside(solution: Solution, size: Size) -> bool:
    """Whether a point is in an image of ``size``, or a box or polygon with an area is."""
    shape = read_shape(solution)
    if isinstance(shape, Point):
        return 0 <= shape.x < size.width and 0 <= shape.y < size.height
    bounds = bounds_of(shape)
    return shape.is_valid and bounds.clipped(size) == bounds


def map_in_order(
    action: Callable[[Item], Result], items: Iterable[Item], workers: int, stop: threading.Event
) -> Generator[Result, None, None]:
    """Results of ``action`` in the order of ``items``, worked out by ``workers`` threads.

    At most one item more than there are threads is begun before its result is taken. The first
    exception in the items' order comes out. ``stop`` is set at the end, also when the generator
    is closed before it: an action that looks at it ends then.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="shards") as pool:
        try:
            for item in items:
                pending.append(pool.submit(action, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            for future in pending:
                future.cancel()
