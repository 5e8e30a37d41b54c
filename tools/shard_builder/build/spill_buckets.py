"""Rows that memory may not hold: dealt into buckets, kept in files where they are too many."""

import pickle
import shutil
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

NUM_BUCKETS = 256
"""So much of all rows is in memory at a time when they are read back bucket by bucket."""

_MAX_BYTES = 64 * 2**20
_OBJECT_BYTES = 41  # of an empty bytes object and its place in the list


class Buckets:
    """Rows of any picklable kind in :data:`NUM_BUCKETS` buckets, each in the order of adding.

    64 MiB of them stay in memory; what is more goes to files. These are in a private folder and
    are read by the process that wrote them, so pickle is safe here; nothing of a data set is
    ever stored this way.

    Args:
        folder: Made when it is needed; belongs to these buckets alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: defaultdict[int, list[bytes]] = defaultdict(list)
        self._num_bytes = 0

    def add(self, bucket: int, row: Any) -> None:
        """Appends a row to a bucket from 0 to 255."""
        # Pickled, rows take a fraction of the memory, and it is known how much.
        data = pickle.dumps(row, protocol=5)
        self._rows[bucket].append(data)
        self._num_bytes += len(data) + _OBJECT_BYTES
        if self._num_bytes >= _MAX_BYTES:
            self._spill()

    def read(self, bucket: int) -> Iterator[Any]:
        """The rows of a bucket, once all are added."""
        path = self._path(bucket)
        if path.exists():
            with path.open("rb") as file:
                while file.peek(1):
                    yield pickle.load(file)  # noqa: S301 - our own file, see the class
        for data in self._rows.get(bucket, ()):
            yield pickle.loads(data)  # noqa: S301

    def groups(self) -> Iterator[Iterator[Any]]:
        """All rows at once where they are in memory, else bucket by bucket."""
        if self._folder.exists():
            yield from map(self.read, range(NUM_BUCKETS))
        else:
            yield chain.from_iterable(map(self.read, sorted(self._rows)))

    def clear(self) -> None:
        """Drops all rows and files."""
        self._rows.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spill(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for bucket, rows in self._rows.items():
            with self._path(bucket).open("ab") as file:
                file.writelines(rows)
        self._rows.clear()
        self._num_bytes = 0

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:03d}"
