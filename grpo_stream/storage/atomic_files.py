"""Files that appear whole or not at all, and errors of disks that name the file."""

import errno
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of an OSError that room on the disk would help."""
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


def read_at(descriptor: int, offset: int, num_bytes: int) -> bytes:
    """Bytes from ``offset`` of an open file; fewer than ``num_bytes`` where it ends.

    Raises:
        OSError: the disk fails.
    """
    data = os.pread(descriptor, num_bytes, offset)
    while len(data) < num_bytes:  # a signal or the kernel's 2 GiB limit cut it short
        more = os.pread(descriptor, num_bytes - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def temp_beside(path: Path) -> Path:
    """A name in the same folder that nobody else uses; hidden from listings by its dot.

    Drawn, and not the number of the process: on a folder that machines share, two of them may have
    processes of one number, as the first ones of containers have.
    """
    return path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives an OSError of a descriptor (EIO, ESTALE, ENOSPC) the path that it happened at."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


class _NamedFile(io.FileIO):
    """A file whose reads fail with its name."""

    def readinto(self, buffer: Any) -> int:
        with naming(str(self.name)):
            return super().readinto(buffer) or 0


def open_reading(path: str | os.PathLike[str], buffer_bytes: int) -> BinaryIO:
    """Opens a file for reading; unlike those of ``open``, errors of its reads name it."""
    return cast("BinaryIO", io.BufferedReader(_NamedFile(os.fspath(path)), buffer_bytes))


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable; file systems that cannot (some of FUSE) do without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def commit(file: BinaryIO, temp: Path, path: Path) -> None:
    """Closes ``file``, written at ``temp``, and gives it its final name, durably."""
    with naming(path):
        file.flush()
        os.fsync(file.fileno())
        file.close()
    temp.replace(path)
    sync_folder(path.parent)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that gets its name ``path`` when the block ends, and vanishes on an error."""
    temp = temp_beside(path)
    try:
        with naming(path), temp.open("wb") as file:
            yield file
            commit(file, temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path`` in one go, replacing what is there."""
    with atomic_writer(path) as file:
        file.write(data)


def no_room_line(error: OSError) -> str:
    """What a full disk (:data:`NO_ROOM`) is called, with what helps."""
    return f"{error.filename}: {error.strerror}; make room and start the same command again"


def write_together(files: Mapping[Path, bytes], *, removed_first: Path) -> None:
    """Writes all files under other names, then gives them theirs, in order.

    A full disk leaves all of them as they were.

    Args:
        files: Path -> content.
        removed_first: An older file that goes before the first one gets its name.
    """
    temps = {path: temp_beside(path) for path in files}
    try:
        for path, data in files.items():
            with naming(path), temps[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        removed_first.unlink(missing_ok=True)
        for path, temp in temps.items():
            temp.replace(path)
            sync_folder(path.parent)
    except BaseException:
        for temp in temps.values():
            temp.unlink(missing_ok=True)
        raise
