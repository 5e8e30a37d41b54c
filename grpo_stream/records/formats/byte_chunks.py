"""The bytes of an input, from wherever it lies: in order, in pieces, unpacked where packed."""

import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from grpo_stream.errors import ConfigError, RecordError, StoreError
from grpo_stream.storage.atomic_files import open_reading
from grpo_stream.storage.store import open_store

_READ_BYTES = 1 << 18
_UNPACKED_BYTES = 1 << 20
# zstandard unpacks all that it is given, but 512 bytes hold at most 128 blocks of 128 KiB.
_ZSTD_PIECE_BYTES = 512
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

OnBytes = Callable[[bytes], None]
"""Takes an input's bytes as they are stored, in order, for hashing."""


def is_remote(name: str) -> bool:
    """Whether ``name`` is a URL of a bucket or web server."""
    return "://" in name and not name.startswith("file://")


def local_path(name: str) -> str:
    """The path of a local input, which may be written as ``file://`` URL."""
    return unquote(urlsplit(name).path) if name.startswith("file://") else name


def read_chunks(
    name: str, query: str = "", on_bytes: OnBytes | None = None
) -> Generator[bytes, None, None]:
    """The input's bytes as they are stored.

    Args:
        name: A local path or the URL of one object.
        query: What follows the ``?`` of a signed URL.
        on_bytes: Gets every piece too.

    Raises:
        RecordError: cause ``input_unreadable``.
        ConfigError: object storage without the ``cloud`` extra.
    """
    try:
        with closing(_open(name, query)) as file:
            while chunk := file.read(_READ_BYTES):
                if on_bytes is not None:
                    on_bytes(chunk)
                yield chunk
    except ConfigError:  # which is a ValueError too
        raise
    except StoreError as error:
        raise RecordError("input_unreadable", error.detail) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordError("input_unreadable", f"{name}: {reason}") from error


def unpack(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The content of a gzip or Zstandard file, known by its first bytes or its name.

    Memory stays bounded whatever the content unpacks to.

    Raises:
        RecordError: cause ``input_unreadable``: damaged or cut short.
        ConfigError: Zstandard without the ``zstd`` extra.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(_ZSTD_MAGIC):
            break
    pieces = _again(head, chunks)
    if head.startswith(_GZIP_MAGIC) or (head and name.endswith((".gz", ".tgz"))):
        return _unpacked(pieces, name, _gzip_decoder, zlib.error)
    if head.startswith(_ZSTD_MAGIC) or (head and name.endswith(".zst")):
        try:
            import zstandard  # noqa: PLC0415 - an extra
        except ImportError as error:
            expected = "reading .zst needs zstandard: pip install 'grpo_stream[zstd]'"
            raise ConfigError("INPUT", name, expected) from error

        def zstd_decoder() -> Any:
            return zstandard.ZstdDecompressor().decompressobj()

        small = _pieces(pieces, _ZSTD_PIECE_BYTES)
        return _unpacked(small, name, zstd_decoder, zstandard.ZstdError)
    return pieces


class ChunkReader:
    """Pieces of bytes as a file that is read forwards, each time for exactly what is asked."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, num_bytes: int) -> bytes:
        """The next bytes; fewer only at the end."""
        parts = [self._rest]
        missing = num_bytes - len(self._rest)
        while missing > 0 and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            missing -= len(chunk)
        data = b"".join(parts)
        self._rest = data[num_bytes:]
        return data[:num_bytes]

    def drain(self) -> None:
        """Reads to the end."""
        for _ in self._chunks:
            pass


def _open(name: str, query: str) -> BinaryIO:
    if not is_remote(name):
        return open_reading(local_path(name), _READ_BYTES)
    folder, _, file_name = name.rpartition("/")
    if name.startswith(("http://", "https://")):
        file_name = unquote(file_name)  # obstore quotes it again
    # Given as the folder's, the query goes with the requests for every file in it.
    return open_store(f"{folder}?{query}" if query else folder).open_stream(file_name)


def _gzip_decoder() -> Any:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


def _unpacked(
    chunks: Iterator[bytes],
    name: str,
    new_decoder: Callable[[], Any],
    damage: type[Exception],
) -> Iterator[bytes]:
    decoder: Any = None
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if decoder is None:  # at the start, or after one that ended
                    data = data.lstrip(b"\0")  # the padding of a tape
                    decoder = new_decoder() if data else None
                    continue
                if new_decoder is _gzip_decoder:
                    unpacked = decoder.decompress(data, _UNPACKED_BYTES)
                else:
                    unpacked = decoder.decompress(data)
                if unpacked:
                    yield unpacked
                if decoder.eof:  # another one may follow
                    data = decoder.unused_data
                    decoder = None
                else:
                    data = getattr(decoder, "unconsumed_tail", b"")
        if decoder is not None:
            if rest := decoder.flush():
                yield rest
            if not decoder.eof:
                raise RecordError("input_unreadable", f"{name}: the packed file is cut short")
    except damage as error:
        raise RecordError("input_unreadable", f"{name}: {error}") from error


def _again(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


def _pieces(chunks: Iterator[bytes], num_bytes: int) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), num_bytes):
            yield chunk[start : start + num_bytes]
