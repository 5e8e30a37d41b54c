"""A folder as a store."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from grpo_stream.errors import ConfigError
from grpo_stream.storage.atomic_files import (
    atomic_writer,
    open_reading,
    read_at,
    write_atomic,
)
from grpo_stream.storage.blobs import BlobInfo, Range, check_length, check_name, store_error
from grpo_stream.storage.store_protocol import CLOUD_SCHEMES

_STREAM_BUFFER_BYTES = 2**20
_MAX_OPEN_FILES = 64
_CHECK_SECONDS = 1.0


def open_folder(text: str) -> "LocalStore":
    """The folder that a path or a ``file://`` URL names.

    Raises:
        ConfigError: it has another scheme, or is empty.
    """
    scheme = text.partition(":")[0] if ":" in text.partition("/")[0] else ""
    if scheme == "":
        if not text:
            raise ConfigError("url", text, "must name a folder or bucket, for example out/shards")
        return LocalStore(text)
    if scheme == "file":
        return LocalStore(unquote(urlsplit(text).path))
    known = ", ".join(f"{known}://" for known in ("file", *CLOUD_SCHEMES))
    raise ConfigError("url", text, f"must be a folder or start with {known}; for example ./shards")


class _OpenFile:
    """A file descriptor that is closed when the last thread that reads from it lets it go."""

    __slots__ = ("checked_at", "fd", "identity", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.checked_at = time.monotonic()
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity = _identity(os.fstat(self.fd))

    def __del__(self) -> None:
        if hasattr(self, "fd"):  # else there is no such file
            os.close(self.fd)

    def is_current(self) -> bool:
        """Whether the path still leads to this file: no other has its number while it is open.

        Asked once a second at most, for it takes half as long as a read.
        """
        now = time.monotonic()
        if now - self.checked_at < _CHECK_SECONDS:
            return True
        self.checked_at = now
        return _identity(os.stat(self.path)) == self.identity  # noqa: PTH116 - a path is 3 us more


class LocalStore:
    """A folder. See :class:`~grpo_stream.storage.store.Store`.

    The 64 files that were opened last to read ranges stay open, at most; one that was replaced is
    opened anew within a second. What others delete keeps its place on the disk until it is no
    longer among them.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._open_files: dict[str, _OpenFile] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["LocalStore"], tuple[Path]]:
        return type(self), (self.folder,)  # open files stay in their process

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def read(self, name: str) -> bytes:
        """See :meth:`Store.read`."""
        try:
            return self._path(name).read_bytes()
        except OSError as error:
            raise store_error("unreadable", self.url, name, error) from error

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """See :meth:`Store.read_range`."""
        try:
            try:
                file = self._open(name)  # held by its name: it must stay open while it is read
                data = read_at(file.fd, offset, num_bytes)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                self._let_go(name)  # NFS: the file was replaced, or the server began anew
                file = self._open(name)
                data = read_at(file.fd, offset, num_bytes)
        except OSError as error:
            raise store_error("unreadable", self.url, name, error) from error
        if len(data) != num_bytes:
            check_length(data, self.url, name, offset, num_bytes)
        return data

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """See :meth:`Store.read_ranges`; one after another."""
        return [self.read_range(name, offset, num_bytes) for offset, num_bytes in ranges]

    def open_stream(self, name: str) -> BinaryIO:
        """See :meth:`Store.open_stream`."""
        try:
            return open_reading(self._path(name), _STREAM_BUFFER_BYTES)
        except OSError as error:
            raise store_error("unreadable", self.url, name, error) from error

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Store.write`; the folder is made when it is missing."""
        path = self._path(name)
        self._let_go(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise store_error("unwritable", self.url, name, error) from error

    def write_new(self, name: str, data: bytes) -> bool:
        """See :meth:`Store.write_new`; a reader may see the file before it has its content."""
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        except OSError as error:
            raise store_error("unwritable", self.url, name, error) from error
        return True

    def put_file(self, name: str, path: str | os.PathLike[str]) -> str:
        """See :meth:`Store.put_file`; the folder is made when it is missing."""
        target = self._path(name)
        self._let_go(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with Path(path).open("rb") as source, atomic_writer(target) as file:
                shutil.copyfileobj(source, file, _STREAM_BUFFER_BYTES)
        except OSError as error:
            raise store_error("unwritable", self.url, name, error) from error
        return ""

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
        self._let_go(name)  # an open file would keep its place on the disk
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise store_error("unwritable", self.url, name, error) from error

    def exists(self, name: str) -> bool:
        """See :meth:`Store.exists`."""
        try:
            return self._path(name).is_file()
        except OSError as error:
            raise store_error("unreadable", self.url, name, error) from error

    def size(self, name: str) -> int:
        """See :meth:`Store.size`."""
        try:
            return self._path(name).stat().st_size
        except OSError as error:
            raise store_error("unreadable", self.url, name, error) from error

    def list_names(self) -> list[str]:
        """See :meth:`Store.list_names`; hidden files (unfinished writes) are left out."""
        try:
            names = (path.name for path in self.folder.iterdir() if path.is_file())
            return sorted(name for name in names if not name.startswith("."))
        except OSError as error:
            raise store_error("unreadable", self.url, "listing", error) from error

    def sizes(self) -> dict[str, int]:
        """See :meth:`Store.sizes`; hidden files are left out."""
        return {name: self.size(name) for name in self.list_names()}

    def listing(self) -> dict[str, BlobInfo]:
        """See :meth:`Store.listing`; files have no tags."""
        return {name: BlobInfo(num_bytes, "") for name, num_bytes in self.sizes().items()}

    def walk(self, prefix: str = "") -> list[str]:
        """See :meth:`Store.walk`; hidden files and folders are left out, links are followed."""
        start = self._path(prefix) if prefix else self.folder
        try:
            return sorted(path.relative_to(self.folder).as_posix() for path in _files_below(start))
        except OSError as error:
            raise store_error("unreadable", self.url, prefix or "listing", error) from error

    def _open(self, name: str) -> _OpenFile:
        file = self._open_files.get(name)
        try:
            if file is not None and file.is_current():
                return file
            file = _OpenFile(str(self._path(name)))
        except OSError:
            self._let_go(name)
            raise
        with self._lock:
            self._open_files.pop(name, None)
            self._open_files[name] = file
            if len(self._open_files) > _MAX_OPEN_FILES:
                del self._open_files[next(iter(self._open_files))]
        return file

    def _let_go(self, name: str) -> None:
        with self._lock:
            self._open_files.pop(name, None)

    def _path(self, name: str) -> Path:
        return self.folder / check_name(name, self.url)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _files_below(start: Path) -> Iterator[Path]:
    seen: set[str] = set()  # a link may lead back up
    for folder, folders, names in os.walk(start, onerror=_raise, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(Path(folder, name)) not in seen
        ]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # nothing there: nothing to list
        raise error
