"""A bucket or web folder as a store, through obstore."""

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar, cast

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.printable import has_user, mask_secrets
from grpo_stream.storage.ask_server import address_of, other_host, retry_after_seconds
from grpo_stream.storage.blobs import (
    BlobInfo,
    Data,
    Range,
    adjacent_runs,
    check_length,
    check_name,
    cut,
    first_line,
    span,
    store_error,
)
from grpo_stream.storage.error_causes import asks_to_wait, cause_of, explain
from grpo_stream.storage.object_url import client_options, literal_url, sends_secrets, url_hint
from grpo_stream.storage.retry_policy import Retrier

_SILENT_SECONDS = 60.0  # in which a server that named no time to wait is not asked again

_STREAM_CHUNK_BYTES = 2**20
_PART_BYTES = 8 * 2**20
_PARTS_IN_FLIGHT = 4
_MAX_PARTS = 10_000  # S3's limit to the parts of one upload

_Result = TypeVar("_Result")


class ObjectStore:
    """A bucket or web folder. See :class:`~grpo_stream.storage.store.Store`.

    obstore's threads do not survive a fork: a call in a forked child would wait for ever once
    any call was made in the parent. Such a call raises StoreError (cause ``forked``) instead;
    start workers with spawn or forkserver, or use threads.

    Args:
        url: ``s3://bucket/folder``, ``gs://...``, ``az://container/folder``,
            ``https://host/folder``. Credentials and endpoints come from the provider's
            environment variables, which ``docs/storage.md`` lists; an endpoint may be plain http.
        client: An obstore store to use in place of the one that ``url`` names.
        retrier: Time-outs of each request, and how a stream that broke off is resumed. Each read
            is then one request that is not repeated: that is RetryingStore's part. What is written,
            and all without it, obstore repeats by its own rules.

    Raises:
        ConfigError: obstore is not installed or refuses the URL.
    """

    _used_in_pid: ClassVar[int | None] = None

    def __init__(self, url: str, client: Any = None, *, retrier: Retrier | None = None) -> None:
        try:
            import obstore  # noqa: PLC0415 - an extra: only those who read from buckets need it
            from obstore.store import HTTPStore, from_url  # noqa: PLC0415
        except ImportError as error:
            expected = "object storage needs obstore: pip install 'grpo_stream[cloud]'"
            raise ConfigError("url", url, expected) from error
        if has_user(url):
            expected = (
                "holds a user or password, which is not sent: see docs/storage.md, Credentials"
            )
            raise ConfigError("url", url, expected)
        self._url = mask_secrets(url)
        self._obstore = obstore
        self._check_process()
        make = None
        try:
            if client is None:
                make = partial(from_url, literal_url(url))
                rules = None if retrier is None else retrier.rules
                client = make(**client_options(url, rules))
        except (obstore.exceptions.BaseError, ValueError) as error:
            expected = f"obstore refuses it ({first_line(error)}); {url_hint(url)}"
            raise ConfigError("url", url, expected) from error
        self._client = self._writer = client
        self._address = url  # with its query: for requests, never for messages
        self._may_be_sent_on = sends_secrets(url, client)
        self._ask_from = 0.0
        self._retrier = retrier
        if retrier is not None and make is not None:
            self._writer = make(**client_options(url, None))
        self._is_web = isinstance(client, HTTPStore)

    @property
    def url(self) -> str:
        """The URL it was opened with, without what a query would give away."""
        return self._url

    def read(self, name: str) -> bytes:
        """See :meth:`Store.read`; a large object is read as a stream is."""
        response = self._get(name, None)
        if response.meta["size"] > _STREAM_CHUNK_BYTES:
            return b"".join(self._chunks(name, response))
        return bytes(self._call("unreadable", name, lambda _c, _n: response.bytes()))

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

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> Sequence[Data]:
        """See :meth:`Store.read_ranges`; up to ten requests of a call are on their way at a time.

        A request of many costs two thirds of the CPU of one that is made alone.
        """
        runs = adjacent_runs(ranges)
        starts, sizes = zip(*map(span, runs), strict=True)
        answers = self._call(
            "unreadable",
            name,
            lambda c, n: self._obstore.get_ranges(c, n, starts=starts, lengths=sizes, coalesce=0),
        )
        found: list[Data] = []
        for run, start, size, answer in zip(runs, starts, sizes, answers, strict=True):
            data = memoryview(answer)
            check_length(data, self.url, name, start, size)
            # A view keeps the whole answer: neighbours, which may be used long after, are copied.
            found += cut(data, run) if len(run) > 1 else [data]
        return found

    def open_stream(self, name: str) -> BinaryIO:
        """See :meth:`Store.open_stream`.

        One request for the whole; when it breaks off, as it does under a reader slower than the
        client's time-out, another one resumes from there, provided the object is still the same.
        """
        raw = _RawStream(self._counted(self._chunks(name, self._get(name, None))))
        return cast("BinaryIO", io.BufferedReader(raw, _STREAM_CHUNK_BYTES))

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Store.write`; a put is atomic on every object store."""
        self._call("unwritable", name, lambda c, n: self._obstore.put(c, n, data))

    def write_new(self, name: str, data: bytes) -> bool:
        """See :meth:`Store.write_new`; ``If-None-Match: *``."""
        try:
            self._call(
                "unwritable", name, lambda c, n: self._obstore.put(c, n, data, mode="create")
            )
        except StoreError as error:
            if error.cause != "exists":
                raise
            return False
        return True

    def put_file(self, name: str, path: str | os.PathLike[str]) -> str:
        """See :meth:`Store.put_file`.

        Files above 8 MiB go in parts of that size, or larger for more than 80 GB, four at a time.
        An upload that was broken off may leave parts that cost storage until the bucket's
        lifecycle rule removes them. A web server takes no parts: there the file is held whole.
        """
        try:
            num_bytes = Path(path).stat().st_size
        except OSError as error:
            raise store_error("unreadable", str(path), name, error) from error
        put = self._call(
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
        return _tag(put)

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
        return {name: found.num_bytes for name, found in self.listing().items()}

    def listing(self) -> dict[str, BlobInfo]:
        """See :meth:`Store.listing`; plain web servers cannot list (cause ``unreadable``)."""
        found = self._call(
            "unreadable", None, lambda c, _: self._obstore.list_with_delimiter(c)["objects"]
        )
        return {entry["path"]: BlobInfo(entry["size"], _tag(entry)) for entry in found}

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
        position = 0
        pieces = self._pieces(name, response)
        while True:
            try:
                for piece in pieces:
                    position += len(piece)
                    yield piece
                if position >= num_bytes:
                    return
                detail = f"{self.url}: {name}: ends at byte {position} of {num_bytes}"
                broken = StoreError("broken_off", detail)
            except StoreError as error:
                broken = error
            if self._retrier is not None:
                self._retrier.counters.add_retry(broken.cause, 0.0)
            # The next request must bring a piece: a read never goes round without progress.
            options: dict[str, Any] = {"range": {"offset": position}}
            if tag:
                options["if_match"] = tag
            try:
                pieces = self._with_retries(partial(self._go_on, name, options))
            except StoreError as error:
                # Whoever reads from the start again gets over the one, not over the other.
                raise broken if error.cause == "range_ignored" else error from None

    def _go_on(self, name: str, options: dict[str, Any]) -> Iterator[bytes]:
        pieces = self._pieces(name, self._get(name, options))
        first = next(pieces, None)
        if first is None:
            offset = options["range"]["offset"]
            raise StoreError("broken_off", f"{self.url}: {name}: nothing came from byte {offset}")
        return chain((first,), pieces)

    def _pieces(self, name: str, response: Any) -> Iterator[bytes]:
        try:
            for piece in response.stream(min_chunk_size=_STREAM_CHUNK_BYTES):
                yield bytes(piece)
        except (self._obstore.exceptions.BaseError, OSError) as error:
            # Not chained: obstore's own words hold the query of a signed URL.
            raise explain(cause_of(error, "unreadable"), self.url, name, error) from None

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._retrier is not None:
                self._retrier.counters.add(num_bytes=len(piece))
            yield piece

    def _with_retries(self, action: Callable[[], _Result]) -> _Result:
        return action() if self._retrier is None else self._retrier.run(action)

    def _call(self, cause: str, name: str | None, action: Any) -> Any:
        self._check_process()
        if self._may_be_sent_on and name is not None:
            self._check_host(name)
        try:
            client = self._writer if cause == "unwritable" else self._client
            return action(client, None if name is None else check_name(name, self.url))
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            found = cause_of(error, cause)
            if cause == "unwritable" and found not in ("not_found", "no_bucket", "exists"):
                found = cause
            told = explain(found, self.url, name or "listing", error)
            if name is not None and self._retrier is not None and asks_to_wait(error):
                told.retry_after_seconds = self._ask_how_long(name)
            raise told from None

    def _check_host(self, name: str) -> None:
        """Refuses a server that sends readers on to another: they would take their secrets along.

        obstore follows redirects with ``x-amz-security-token``, and the query of a signed URL
        as ``Referer``. Asked once, before the first request.

        Raises:
            StoreError: cause ``redirected``.
        """
        self._may_be_sent_on = False
        address = address_of(self._address, self._client, name)
        host = None if address is None else other_host(address)
        if host is not None:
            self._may_be_sent_on = True
            detail = f"{self.url}: {name}: the server sends readers on to {host}"
            raise StoreError(
                "redirected", f"{detail}: give that one's URL or endpoint, if you trust it"
            )

    def _ask_how_long(self, name: str) -> float:
        if time.monotonic() < self._ask_from:
            return 0.0
        address = address_of(self._address, self._client, name)
        seconds = 0.0 if address is None else retry_after_seconds(address)
        if seconds == 0.0:
            self._ask_from = time.monotonic() + _SILENT_SECONDS
        return seconds

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


def _tag(meta: Any) -> str:
    return str(meta.get("e_tag") or "").strip('"')
