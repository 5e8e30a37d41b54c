"""The folder in which the processes of a machine keep whole shards, within a bound of bytes.

::

    cache.lock                                who holds it (flock) may reserve, evict, commit
    grpo-stream-<digest>/shard-000007.tar     whole; locked shared by every process that needs it
    grpo-stream-<digest>/.shard-000008.tar.part    arriving; locked by the process that fetches it

All locks are the kernel's own and end with the process that holds them, however it ends; so none is
ever stale, and a file that no one has locked is free to be evicted (or, if unfinished, swept).
The folder must be on a disk of this machine: locks of network disks are slow or missing.
"""

import contextlib
import enum
import fcntl
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from grpo_stream.storage.atomic_files import naming, read_at

_LOCK_NAME = "cache.lock"
_OURS = "grpo-stream-"  # nothing else in the folder is looked at, let alone evicted
_PART = ".part"
_TOUCH_SECONDS = 5.0
_MODE = 0o666  # less the umask, as for any file


class CacheRefusal(enum.Enum):
    """Why a shard is not to be fetched now."""

    HERE = "it is in the folder already"
    BUSY = "another thread or process fetches it"
    FULL = "the bound leaves no room beside what is in use"


class OpenShard:
    """A whole shard, open for reading by any number of threads.

    As long as the object lives, no process evicts the file. It is closed when nobody refers to it
    any more, so that one thread may let go of it while another still reads.

    Args:
        descriptor: Open for reading, locked; the object owns it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._touched = 0.0

    def __del__(self) -> None:
        os.close(self.descriptor)

    def read_range(self, offset: int, num_bytes: int) -> bytes:
        """Bytes from ``offset``; fewer than ``num_bytes`` where the file ends.

        Raises:
            OSError: the disk fails.
        """
        now = time.time()
        if now - self._touched > _TOUCH_SECONDS:  # eviction goes by the time of the last use
            self._touched = now
            with contextlib.suppress(OSError):  # another user's file
                os.utime(self.descriptor)
        return read_at(self.descriptor, offset, num_bytes)


class _File(NamedTuple):
    used: float
    """Time of the last use."""
    num_bytes: int
    path: Path


class CacheFolder:
    """One data set's part of a shared cache folder. Methods may be called from many threads.

    Args:
        top: The shared folder; made when missing.
        key: Names the data set's content: equal keys share files.
        cache_bytes: Bound to the sum of all files of all data sets, unfinished ones at their full
            size. Every process that shares the folder should be given the same.

    Raises:
        OSError: files cannot be made, locked or removed there.
    """

    def __init__(self, top: str | os.PathLike[str], key: str, cache_bytes: int) -> None:
        self._top = Path(top)
        self._own = self._top / f"{_OURS}{key}"
        self._cache_bytes = cache_bytes
        self.num_evicted = 0
        """Files that this object removed to make room."""
        with self._alone():
            self._list()
            probe = self.part_path("probe")
            probe.write_bytes(b"")
            probe.unlink()

    def open(self, name: str, num_bytes: int) -> OpenShard | None:
        """The shard, when it is here, whole and not being evicted at this moment.

        A file of another size than ``num_bytes`` is removed.
        """
        try:
            shard = OpenShard(os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC))
            fcntl.flock(shard.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            stat = os.fstat(shard.descriptor)
        except OSError:
            return None
        if stat.st_nlink == 0:  # evicted between the first line and the second
            return None
        if stat.st_size != num_bytes:
            self.remove(name, shard)
            return None
        return shard

    def remove(self, name: str, shard: OpenShard | None = None) -> None:
        """Takes the shard out of the folder; with ``shard``, only if it is still that very file."""
        path = self._path(name)
        with contextlib.suppress(OSError):
            if shard is None or _is_at(shard.descriptor, path):
                path.unlink()

    def reserve(
        self, name: str, num_bytes: int, keep: Collection[str]
    ) -> "Download | CacheRefusal":
        """Makes room for a shard and starts its file.

        Files are evicted only when that gives enough room, the ones whose last use is longest ago
        first, and none that any process has open.

        Args:
            name: The shard.
            num_bytes: Its size, at once counted as used.
            keep: Shards of this data set that must not be evicted either.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._alone():
            path = self._path(name)
            part = self.part_path(name)
            files = self._list()
            if any(file.path == path and file.num_bytes == num_bytes for file in files):
                return CacheRefusal.HERE
            if any(file.path == part for file in files):
                return CacheRefusal.BUSY
            kept = {self._path(other) for other in keep}
            if not self._make_room(files, num_bytes, kept):
                return CacheRefusal.FULL
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            download = Download(self, name, OpenShard(descriptor))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, num_bytes)  # others see the whole size from now on
            except BaseException:
                download.discard()
                raise
            return download

    def commit(self, name: str, shard: OpenShard) -> None:
        """Gives the finished file of ``shard`` its name.

        Raises:
            FileNotFoundError: the file was taken away meanwhile.
            OSError: the folder cannot be written.
        """
        part = self.part_path(name)
        with self._alone():
            if not _is_at(shard.descriptor, part):
                raise FileNotFoundError(f"{part} was removed while it was written")
            part.replace(self._path(name))
            fcntl.flock(shard.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def discard(self, name: str, shard: OpenShard) -> None:
        """Removes the unfinished file of ``shard``."""
        part = self.part_path(name)
        with contextlib.suppress(OSError):
            if _is_at(shard.descriptor, part):
                part.unlink()

    def _path(self, name: str) -> Path:
        quoted = quote(name, safe="")
        return self._own / (f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted)

    def part_path(self, name: str) -> Path:
        """Where a shard is while it arrives."""
        return self._own / f".{quote(name, safe='')}{_PART}"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        path = self._top / _LOCK_NAME
        while True:
            # Each time anew: the folder may have been deleted, and a lock on a deleted file
            # keeps nobody out.
            self._own.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _is_at(descriptor, path):
                    yield
                    return
            finally:
                os.close(descriptor)

    def _list(self) -> list[_File]:
        """All files that count, those of dead downloaders swept; only while alone."""
        files = []
        for folder in self._top.glob(f"{_OURS}*"):
            for path in folder.iterdir():
                if _is_part(path) and _remove_free(path):
                    continue
                with contextlib.suppress(FileNotFoundError):  # dropped by a reader just now
                    stat = path.stat()
                    files.append(_File(stat.st_mtime, stat.st_size, path))
        return files

    def _make_room(self, files: list[_File], num_bytes: int, keep: Collection[Path]) -> bool:
        excess = sum(file.num_bytes for file in files) + num_bytes - self._cache_bytes
        victims = []
        for file in sorted(files):
            if excess <= 0:
                break
            if file.path not in keep and not _is_part(file.path) and _is_free(file.path):
                victims.append(file.path)
                excess -= file.num_bytes
        if excess > 0:
            return False
        num_removed = sum(_remove_free(path) for path in victims)
        self.num_evicted += num_removed
        return num_removed == len(victims)  # else a reader was quicker


class Download:
    """The room reserved for one shard, to be filled from its start, then committed or discarded.

    Args:
        folder: Where it goes.
        name: The shard.
        shard: The unfinished file, locked.
    """

    def __init__(self, folder: CacheFolder, name: str, shard: OpenShard) -> None:
        self._folder = folder
        self._name = name
        self._shard = shard

    def write(self, data: bytes) -> None:
        """Appends ``data``.

        Raises:
            OSError: the disk is full or fails.
        """
        rest = memoryview(data)
        with naming(self._folder.part_path(self._name)):
            while rest:
                rest = rest[os.write(self._shard.descriptor, rest) :]

    def commit(self) -> OpenShard:
        """Makes the file visible as a whole shard, which stays open; see CacheFolder.commit."""
        self._folder.commit(self._name, self._shard)
        return self._shard

    def discard(self) -> None:
        """Gives the room back."""
        self._folder.discard(self._name, self._shard)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_part(path: Path) -> bool:
    return path.name.startswith(".")


def _is_free(path: Path) -> bool:
    """Whether no process has locked the file."""
    with _locked(path) as is_free:
        return is_free


def _remove_free(path: Path) -> bool:
    """Removes the file if no process has locked it; whether it is gone."""
    with _locked(path) as is_free:
        if is_free:
            path.unlink(missing_ok=True)
        return is_free


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Keeps everybody else from locking the file; False where somebody has locked it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
