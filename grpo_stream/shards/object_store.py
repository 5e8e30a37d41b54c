"""A bucket or web folder as a store, through obstore."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.shards.blobs import check_length, check_name, first_line, store_error

_STREAM_CHUNK_BYTES = 2**20
_PART_BYTES = 8 * 2**20
_PARTS_IN_FLIGHT = 4
_MAX_PARTS = 10_000  # S3's limit to the parts of one upload

_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class ObjectStore:
    """A bucket or web folder. See :class:`~grpo_stream.shards.store.Store`.

    obstore's threads do not survive a fork: a call in a forked child would wait for ever once
    any call was made in the parent. Such a call raises StoreError (cause ``forked``) instead;
    start workers with spawn or forkserver, or use threads.

    Args:
        url: ``s3://bucket/folder``, ``gs://...``, ``az://container/folder``,
            ``https://host/folder``. Credentials and endpoints come from the environment, as
            obstore documents them: ``AWS_ENDPOINT_URL`` names another S3 server (plain http is
            then allowed), ``AZURE_STORAGE_ACCOUNT_NAME`` the account of ``az://``.
        client: An obstore store to use in place of the one that ``url`` names.

    Raises:
        ConfigError: obstore is not installed or refuses the URL.
    """

    _used_in_pid: ClassVar[int | None] = None

    def __init__(self, url: str, client: Any = None) -> None:
        try:
            import obstore  # noqa: PLC0415 - an extra: only those who read from buckets need it
            from obstore.store import HTTPStore, from_url  # noqa: PLC0415
        except ImportError as error:
            expected = "object storage needs obstore: pip install 'grpo_stream[cloud]'"
            raise ConfigError("url", url, expected) from error
        self._url = url
        self._obstore = obstore
        self._check_process()
        try:
            if client is None:
                # obstore refuses http:// unless told that no TLS is meant.
                options = {"allow_http": True} if _is_plain_http(url) else None
                client = from_url(url, client_options=options)
        except (obstore.exceptions.BaseError, ValueError) as error:
            expected = f"obstore refuses it ({first_line(error)}); {_hint(url)}"
            raise ConfigError("url", url, expected) from error
        self._client = client
        self._is_web = isinstance(client, HTTPStore)

    @property
    def url(self) -> str:
        """The URL it was opened with."""
        return self._url

    def read(self, name: str) -> bytes:
        """See :meth:`Store.read`."""
        return bytes(self._call("unreadable", name, lambda c, n: self._obstore.get(c, n).bytes()))

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """See :meth:`Store.read_range`."""
        if num_bytes == 0:
            return b""
        data = self._call(
            "unreadable",
            name,
            lambda c, n: self._obstore.get_range(c, n, start=offset, length=num_bytes),
        )
        return check_length(bytes(data), self.url, name, offset, num_bytes)

    def open_stream(self, name: str) -> BinaryIO:
        """See :meth:`Store.open_stream`.

        One request for the whole; when it breaks off, as it does under a reader slower than the
        client's time-out, another one goes on from there, provided the object is still the same.
        """
        raw = _RawStream(self._chunks(name, self._get(name, None)))
        return cast("BinaryIO", io.BufferedReader(raw, _STREAM_CHUNK_BYTES))

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Store.write`; a put is atomic on every object store."""
        self._call("unwritable", name, lambda c, n: self._obstore.put(c, n, data))

    def put_file(self, name: str, path: str | os.PathLike[str]) -> None:
        """See :meth:`Store.put_file`.

        Files above 8 MiB go in parts of that size, or larger for more than 80 GB, four at a time.
        An upload that was broken off may leave parts that cost storage until the bucket's
        lifecycle rule removes them. A web server takes no parts: there the file is held whole.
        """
        try:
            num_bytes = Path(path).stat().st_size
        except OSError as error:
            raise store_error("unreadable", str(path), name, error) from error
        self._call(
            "unwritable",
            name,
            lambda c, n: self._obstore.put(
                c,
                n,
                Path(path),
                use_multipart=num_bytes > _PART_BYTES and not self._is_web,
                chunk_size=max(_PART_BYTES, -(-num_bytes // _MAX_PARTS)),
                max_concurrency=_PARTS_IN_FLIGHT,
            ),
        )

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
        try:
            self._call("unwritable", name, self._obstore.delete)
        except StoreError as error:
            if error.cause != "not_found":
                raise

    def exists(self, name: str) -> bool:
        """See :meth:`Store.exists`."""
        try:
            self.size(name)
        except StoreError as error:
            if error.cause == "not_found":
                return False
            raise
        return True

    def size(self, name: str) -> int:
        """See :meth:`Store.size`."""
        return int(self._call("unreadable", name, self._obstore.head)["size"])

    def list_names(self) -> list[str]:
        """See :meth:`Store.list_names`; plain web servers cannot list (cause ``unreadable``)."""
        return sorted(self.sizes())

    def sizes(self) -> dict[str, int]:
        """See :meth:`Store.sizes`; plain web servers cannot list (cause ``unreadable``)."""
        found = self._call(
            "unreadable", None, lambda c, _: self._obstore.list_with_delimiter(c)["objects"]
        )
        return {entry["path"]: entry["size"] for entry in found}

    def walk(self, prefix: str = "") -> list[str]:
        """See :meth:`Store.walk`; plain web servers cannot list (cause ``unreadable``)."""
        found = self._call(
            "unreadable", prefix or None, lambda c, n: self._obstore.list(c, n).collect()
        )
        return sorted(entry["path"] for entry in found)

    def _get(self, name: str, options: dict[str, Any] | None) -> Any:
        return self._call("unreadable", name, lambda c, n: self._obstore.get(c, n, options=options))

    def _chunks(self, name: str, response: Any) -> Iterator[bytes]:
        tag, num_bytes = response.meta["e_tag"], response.meta["size"]
        position = start = 0
        while True:
            try:
                for chunk in response.stream(min_chunk_size=_STREAM_CHUNK_BYTES):
                    position += len(chunk)
                    yield bytes(chunk)
            except (self._obstore.exceptions.BaseError, OSError) as error:
                if position == start:  # nothing came: another try would fare no better
                    raise store_error("unreadable", self.url, name, error) from error
            if position >= num_bytes:
                return
            if position == start:
                detail = f"{self.url}: {name}: ends at byte {position} of {num_bytes}"
                raise StoreError("short_read", detail)
            start = position
            options: dict[str, Any] = {"range": {"offset": position}}
            response = self._get(name, options | ({"if_match": tag} if tag else {}))

    def _call(self, cause: str, name: str | None, action: Any) -> Any:
        self._check_process()
        try:
            return action(self._client, None if name is None else check_name(name, self.url))
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise store_error(cause, self.url, name or "listing", error) from error

    def _check_process(self) -> None:
        pid = os.getpid()
        if ObjectStore._used_in_pid not in (None, pid):
            raise StoreError(
                "forked",
                f"{self._url}: obstore was used in process {ObjectStore._used_in_pid} before this "
                f"process ({pid}) was forked from it; start workers with spawn or forkserver",
            )
        ObjectStore._used_in_pid = pid


class _RawStream(io.RawIOBase):
    """Chunks of bytes as a file that is read forwards."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        num_bytes = min(len(buffer), len(self._rest))
        buffer[:num_bytes] = self._rest[:num_bytes]
        self._rest = self._rest[num_bytes:]
        return num_bytes


def _is_plain_http(url: str) -> bool:
    if url.startswith("s3"):
        endpoints = (os.environ.get(name, "") for name in _ENDPOINT_VARIABLES)
        return any(endpoint.startswith("http://") for endpoint in endpoints)
    return url.startswith("http://")


def _hint(url: str) -> str:
    if url.startswith(("az", "abfs")):
        return "write az://container/folder and set AZURE_STORAGE_ACCOUNT_NAME"
    return "write s3://bucket/folder"
