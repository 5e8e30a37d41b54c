"""Folders and buckets behind one small interface: read, read a range, write, list."""

import os
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Protocol
from urllib.parse import unquote, urlsplit

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.shards.files import write_atomic

_CLOUD_SCHEMES = ("s3", "gs", "az", "http", "https")


class Store(Protocol):
    """One place that holds named blobs; every method may be called from many threads at once.

    All methods raise StoreError; causes: ``not_found``, ``short_read``, ``bad_name`` (a name
    that leaves the store), ``unreadable``, ``unwritable``, ``forked``.
    """

    @property
    def url(self) -> str:
        """Where it is, as a user would write it."""

    def read(self, name: str) -> bytes:
        """The whole content."""

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Exactly ``num_bytes`` bytes from ``offset``; fewer is an error (``short_read``)."""

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a blob; readers see the old content or the new one, never a part."""

    def exists(self, name: str) -> bool:
        """Whether there is a blob of that name."""

    def size(self, name: str) -> int:
        """Size in bytes."""

    def list_names(self) -> list[str]:
        """Names of the blobs at the top of the store, sorted."""


class LocalStore:
    """A folder. See :class:`Store`."""

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
            raise _store_error("unreadable", self.url, name, error) from error

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
            raise _store_error("unreadable", self.url, name, error) from error
        return _exactly(data, self.url, name, offset, num_bytes)

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Store.write`; the folder is made when it is missing."""
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise _store_error("unwritable", self.url, name, error) from error

    def exists(self, name: str) -> bool:
        """See :meth:`Store.exists`."""
        try:
            return self._path(name).is_file()
        except OSError as error:
            raise _store_error("unreadable", self.url, name, error) from error

    def size(self, name: str) -> int:
        """See :meth:`Store.size`."""
        try:
            return self._path(name).stat().st_size
        except OSError as error:
            raise _store_error("unreadable", self.url, name, error) from error

    def list_names(self) -> list[str]:
        """See :meth:`Store.list_names`; hidden files (unfinished writes) are left out."""
        try:
            names = (path.name for path in self.folder.iterdir() if path.is_file())
            return sorted(name for name in names if not name.startswith("."))
        except OSError as error:
            raise _store_error("unreadable", self.url, "listing", error) from error

    def _path(self, name: str) -> Path:
        return self.folder / _checked(name, self.url)


class ObjectStore:
    """A bucket or web folder, read and written by obstore. See :class:`Store`.

    obstore's threads do not survive a fork: a call in a forked child would wait for ever once
    any call was made in the parent. Such a call raises StoreError (cause ``forked``) instead;
    start workers with spawn or forkserver, or use threads.

    Args:
        url: ``s3://bucket/folder``, ``gs://...``, ``az://...``, ``https://host/folder``.
            Credentials come from the environment, as obstore documents them.
        client: An obstore store to use in place of the one that ``url`` names.

    Raises:
        ConfigError: obstore is not installed or refuses the URL.
    """

    _used_in_pid: ClassVar[int | None] = None

    def __init__(self, url: str, client: Any = None) -> None:
        try:
            import obstore  # noqa: PLC0415 - an extra: only those who read from buckets need it
            from obstore.store import from_url  # noqa: PLC0415
        except ImportError as error:
            expected = "object storage needs obstore: pip install 'grpo_stream[cloud]'"
            raise ConfigError("url", url, expected) from error
        self._url = url
        self._obstore = obstore
        self._check_process()
        try:
            if client is None:
                # obstore refuses http:// unless told that no TLS is meant.
                options = {"allow_http": True} if url.startswith("http://") else None
                client = from_url(url, client_options=options)
            self._client = client
        except (obstore.exceptions.BaseError, ValueError) as error:
            expected = f"obstore refuses it ({_first_line(error)}); write s3://bucket/folder"
            raise ConfigError("url", url, expected) from error

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
        return _exactly(bytes(data), self.url, name, offset, num_bytes)

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Store.write`; a put is atomic on every object store."""
        self._call("unwritable", name, lambda c, n: self._obstore.put(c, n, data))

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
        found = self._call(
            "unreadable", None, lambda c, _: self._obstore.list_with_delimiter(c)["objects"]
        )
        return sorted(entry["path"] for entry in found)

    def _call(self, cause: str, name: str | None, action: Any) -> Any:
        self._check_process()
        try:
            return action(self._client, None if name is None else _checked(name, self.url))
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise _store_error(cause, self.url, name or "listing", error) from error

    def _check_process(self) -> None:
        pid = os.getpid()
        if ObjectStore._used_in_pid not in (None, pid):
            raise StoreError(
                "forked",
                f"{self._url}: obstore was used in process {ObjectStore._used_in_pid} before this "
                f"process ({pid}) was forked from it; start workers with spawn or forkserver",
            )
        ObjectStore._used_in_pid = pid


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store that a path or URL names; nothing is read yet.

    Args:
        url: A folder, ``file:///folder``, ``s3://``, ``gs://``, ``az://``, ``http(s)://``.

    Raises:
        ConfigError: another scheme (``pipe:`` among them: no shell is ever run), or an object
            store without the ``cloud`` extra.
    """
    text = os.fspath(url)
    scheme = text.partition(":")[0] if ":" in text.partition("/")[0] else ""
    if scheme == "":
        if not text:
            raise ConfigError("url", text, "must name a folder or bucket, for example out/shards")
        return LocalStore(text)
    if scheme == "file":
        return LocalStore(unquote(urlsplit(text).path))
    if scheme in _CLOUD_SCHEMES and text.startswith(f"{scheme}://"):
        return ObjectStore(text)
    known = ", ".join(f"{known}://" for known in ("file", *_CLOUD_SCHEMES))
    raise ConfigError("url", text, f"must be a folder or start with {known}; for example ./shards")


def _checked(name: str, url: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise StoreError("bad_name", f"{name!r} does not lie in {url}")
    return name


def _exactly(data: bytes, url: str, name: str, offset: int, num_bytes: int) -> bytes:
    if len(data) != num_bytes:
        raise StoreError(
            "short_read",
            f"{url}: {name}: {len(data)} of {num_bytes} bytes at offset {offset}",
        )
    return data


def _store_error(cause: str, url: str, name: str, error: Exception) -> StoreError:
    if isinstance(error, FileNotFoundError):
        cause = "not_found"
    return StoreError(cause, f"{url}: {name}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
