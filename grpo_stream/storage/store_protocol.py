"""What every store can do, and which URLs name object stores."""

import os
from collections.abc import Sequence
from typing import BinaryIO, Protocol

from grpo_stream.storage.blobs import BlobInfo, Data, Range

CLOUD_SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "http", "https")


class Store(Protocol):
    """One place that holds named blobs; every method may be called from many threads at once.

    All methods raise StoreError. Its causes: ``not_found``; ``short_read`` (a blob that ends
    before the range does); ``bad_name`` (a name that leaves the store); ``forked``; of object
    stores ``no_bucket``, ``forbidden``, ``redirected`` (to a host that must not see secrets),
    ``range_ignored``, ``changed`` (replaced while it was read), ``unavailable``, ``timed_out`` and
    ``broken_off``, the last three of which another try may get over; else ``unreadable`` and
    ``unwritable``.
    """

    @property
    def url(self) -> str:
        """Where it is, as a user would write it."""

    def read(self, name: str) -> bytes:
        """The whole content."""

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Exactly ``num_bytes`` bytes from ``offset``; fewer is an error (``short_read``)."""

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> Sequence[Data]:
        """Several ranges of one blob, each (offset, length); raises what :meth:`read_range` does.

        Neighbours come by one request, the others at the same time. What an answer holds is not
        copied once more, so a range may be a memoryview, which cannot be pickled.
        """

    def open_stream(self, name: str) -> BinaryIO:
        """The content from its start, read forwards in bounded memory whatever its size.

        The caller closes it. One thread reads one stream; its reads raise StoreError too, or
        OSError for a folder on a failing disk.
        """

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a blob; readers see the old content or the new one, never a part."""

    def write_new(self, name: str, data: bytes) -> bool:
        """As :meth:`write`, but only where there is no blob of that name; whether it was written.

        Of several that try at once one writes, wherever the provider knows conditional puts.
        """

    def put_file(self, name: str, path: str | os.PathLike[str]) -> str:
        """As :meth:`write`, with the content of the local file ``path``, in bounded memory.

        Returns:
            What :meth:`listing` will call its ``tag``, mostly; empty where there is none.
        """

    def delete(self, name: str) -> None:
        """Removes a blob; one that is not there is no error."""

    def exists(self, name: str) -> bool:
        """Whether there is a blob of that name."""

    def size(self, name: str) -> int:
        """Size in bytes."""

    def list_names(self) -> list[str]:
        """Names of the blobs at the top of the store, sorted."""

    def sizes(self) -> dict[str, int]:
        """Size in bytes of each blob at the top of the store, by name; one listing."""

    def listing(self) -> dict[str, BlobInfo]:
        """Size and tag of each blob at the top of the store, by name; one listing."""

    def walk(self, prefix: str = "") -> list[str]:
        """Names of all blobs below the folder ``prefix`` (all of the store), sorted.

        The names start at the store's top, with ``/`` between folders; nothing there is no error.
        """


def is_object_store(url: str) -> bool:
    """Whether the URL names a bucket or web folder, by its scheme."""
    return url.startswith(tuple(f"{scheme}://" for scheme in CLOUD_SCHEMES))
