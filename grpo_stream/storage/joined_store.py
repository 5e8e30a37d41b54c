"""Several stores as one: names that begin with a number are in another store."""

import os
import re
from collections.abc import Sequence
from typing import BinaryIO

from grpo_stream.storage.blobs import BlobInfo, Data, Range
from grpo_stream.storage.store_protocol import Store

_ELSEWHERE = re.compile(r"([0-9]+)/(.+)")


def joined_name(number: int, name: str) -> str:
    """What a blob of the store of that number is called in a :class:`JoinedStore`."""
    return f"{number:03d}/{name}"


class JoinedStore:
    """A store, and others in which ``000/name``, ``001/name``, ... are. See :class:`~.store.Store`.

    Args:
        main: Where all other names are, and what is listed.
        others: By number.
    """

    def __init__(self, main: Store, others: Sequence[Store]) -> None:
        self.main = main
        self.others = tuple(others)

    @property
    def url(self) -> str:
        """The main store's."""
        return self.main.url

    def _place(self, name: str) -> tuple[Store, str]:
        found = _ELSEWHERE.fullmatch(name)
        if found is None or int(found[1]) >= len(self.others):
            return self.main, name
        return self.others[int(found[1])], found[2]

    def read(self, name: str) -> bytes:
        """See :meth:`Store.read`."""
        store, inner = self._place(name)
        return store.read(inner)

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """See :meth:`Store.read_range`."""
        store, inner = self._place(name)
        return store.read_range(inner, offset, num_bytes)

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> Sequence[Data]:
        """See :meth:`Store.read_ranges`."""
        store, inner = self._place(name)
        return store.read_ranges(inner, ranges)

    def open_stream(self, name: str) -> BinaryIO:
        """See :meth:`Store.open_stream`."""
        store, inner = self._place(name)
        return store.open_stream(inner)

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Store.write`."""
        store, inner = self._place(name)
        store.write(inner, data)

    def write_new(self, name: str, data: bytes) -> bool:
        """See :meth:`Store.write_new`."""
        store, inner = self._place(name)
        return store.write_new(inner, data)

    def put_file(self, name: str, path: str | os.PathLike[str]) -> str:
        """See :meth:`Store.put_file`."""
        store, inner = self._place(name)
        return store.put_file(inner, path)

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
        store, inner = self._place(name)
        store.delete(inner)

    def exists(self, name: str) -> bool:
        """See :meth:`Store.exists`."""
        store, inner = self._place(name)
        return store.exists(inner)

    def size(self, name: str) -> int:
        """See :meth:`Store.size`."""
        store, inner = self._place(name)
        return store.size(inner)

    def list_names(self) -> list[str]:
        """See :meth:`Store.list_names`; of the main store."""
        return self.main.list_names()

    def sizes(self) -> dict[str, int]:
        """See :meth:`Store.sizes`; of the main store."""
        return self.main.sizes()

    def listing(self) -> dict[str, BlobInfo]:
        """See :meth:`Store.listing`; of the main store."""
        return self.main.listing()

    def walk(self, prefix: str = "") -> list[str]:
        """See :meth:`Store.walk`; of the main store."""
        return self.main.walk(prefix)
