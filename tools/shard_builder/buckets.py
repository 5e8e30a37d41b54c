"""Temporary files that hold more than memory does: rows are dealt into buckets, then read back."""

import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

NUM_BUCKETS = 256
"""So much of all rows is in memory at a time when they are read back bucket by bucket."""


class Buckets(AbstractContextManager["Buckets"]):
    """Rows of any picklable kind in :data:`NUM_BUCKETS` files, each in the order of its writing.

    The files lie in a private folder and are read by the process that wrote them, so pickle is
    safe here; nothing of a data set is ever stored this way.

    Args:
        folder: Is made; belongs to these buckets alone.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._files: dict[int, BinaryIO] = {}

    def add(self, bucket: int, row: Any) -> None:
        """Appends a row to a bucket, 0 to :data:`NUM_BUCKETS` - 1."""
        file = self._files.get(bucket)
        if file is None:
            file = self._files[bucket] = self._path(bucket).open("wb")
        pickle.dump(row, file, protocol=5)

    def read(self, bucket: int) -> Iterator[Any]:
        """The rows of a bucket; call :meth:`close` before the first."""
        path = self._path(bucket)
        if path.exists():
            with path.open("rb") as file:
                while file.peek(1):
                    yield pickle.load(file)  # noqa: S301 - our own file, see the class

    def close(self) -> None:
        """Ends the writing."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:03d}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
