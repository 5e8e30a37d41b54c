"""A folder as a store."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from grpo_stream.shards.blobs import check_length, check_name, store_error
from grpo_stream.shards.files import atomic_writer, write_atomic

_STREAM_BUFFER_BYTES = 2**20


class LocalStore:
    """A folder. See :class:`~grpo_stream.shards.store.Store`."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

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
            with self._path(name).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), num_bytes, offset)
                while len(data) < num_bytes:  # a signal or the kernel's 2 GiB limit cut it short
                    more = os.pread(file.fileno(), num_bytes - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
        except OSError as error:
            raise store_error("unreadable", self.url, name, error) from error
        return check_length(data, self.url, name, offset, num_bytes)

    def open_stream(self, name: str) -> BinaryIO:
        """See :meth:`Store.open_stream`."""
        try:
            return self._path(name).open("rb", buffering=_STREAM_BUFFER_BYTES)
        except OSError as error:
            raise store_error("unreadable", self.url, name, error) from error

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Store.write`; the folder is made when it is missing."""
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise store_error("unwritable", self.url, name, error) from error

    def put_file(self, name: str, path: str | os.PathLike[str]) -> None:
        """See :meth:`Store.put_file`; the folder is made when it is missing."""
        target = self._path(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with Path(path).open("rb") as source, atomic_writer(target) as file:
                shutil.copyfileobj(source, file, _STREAM_BUFFER_BYTES)
        except OSError as error:
            raise store_error("unwritable", self.url, name, error) from error

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
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

    def walk(self, prefix: str = "") -> list[str]:
        """See :meth:`Store.walk`; hidden files and folders are left out, links are followed."""
        start = self._path(prefix) if prefix else self.folder
        try:
            return sorted(path.relative_to(self.folder).as_posix() for path in _files_below(start))
        except OSError as error:
            raise store_error("unreadable", self.url, prefix or "listing", error) from error

    def _path(self, name: str) -> Path:
        return self.folder / check_name(name, self.url)


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
