"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
    """A name in the same folder that no other process uses; hidden from listings by its dot."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def commit(file: BinaryIO, temp: Path, path: Path) -> None:
    """Closes ``file``, written at ``temp``, and gives it its final name, durably."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    temp.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that gets its name ``path`` when the block ends, and vanishes on an error."""
    temp = temp_beside(path)
    try:
        with temp.open("wb") as file:
            yield file
            commit(file, temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path`` in one go, replacing what is there."""
    with atomic_writer(path) as file:
        file.write(data)
