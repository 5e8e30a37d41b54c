"""What every store says alike: which names are in it, its ranges, and its errors."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

from grpo_stream.errors import StoreError

# obstore: "... in 3.57ms - Server returned non-2xx status code: 404 Not Found: <?xml ...", where
# what follows is the answer's body, compressed or not.
_NOISE = re.compile(
    r" in [\d.]+(?:ns|µs|ms|s)\b| - Server returned non-2xx status code"
    r"|(?<=status code)(: \d{3}[A-Za-z' -]*): .*"
)
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})</Message>")
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(?:Other\(\s*OtherError\(\s*)?(\w+)")

_Bytes = TypeVar("_Bytes", bytes, memoryview)

Range = tuple[int, int]
"""Offset and length of a part of a blob, in bytes."""

Data = bytes | memoryview
"""What was read: a view where it is in memory that is not Python's."""


class BlobInfo(NamedTuple):
    """A blob as a listing tells of it."""

    num_bytes: int
    tag: str
    """The provider's ETag, which changes with the content; empty where there is none."""


def check_name(name: str, url: str) -> str:
    """``name``, when it stays inside the store.

    Raises:
        StoreError: cause ``bad_name``.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise StoreError("bad_name", f"{name!r} is not in {url}")
    return name


def check_length(data: _Bytes, url: str, name: str, offset: int, num_bytes: int) -> _Bytes:
    """``data``, when it is ``num_bytes`` long.

    Raises:
        StoreError: cause ``short_read``.
    """
    if len(data) != num_bytes:
        detail = f"{url}: {name}: {len(data)} of {num_bytes} bytes at offset {offset}"
        raise StoreError("short_read", detail)
    return data


def adjacent_runs(ranges: Sequence[Range]) -> list[list[Range]]:
    """``ranges`` in their order, in runs in which each begins where the one before it ends."""
    runs: list[list[Range]] = []
    end = -1
    for offset, num_bytes in ranges:
        if offset != end:
            runs.append([])
        runs[-1].append((offset, num_bytes))
        end = offset + num_bytes
    return runs


def span(run: Sequence[Range]) -> Range:
    """The range that a run of neighbours makes."""
    start = run[0][0]
    return start, run[-1][0] + run[-1][1] - start


def cut(data: Data, run: Sequence[Range]) -> list[bytes]:
    """What :func:`span` of a run holds, as the run's ranges."""
    start = run[0][0]
    return [bytes(data[offset - start : offset - start + size]) for offset, size in run]


def store_error(cause: str, url: str, name: str, error: Exception) -> StoreError:
    """``error`` in one line; ``not_found`` whatever the cause, where nothing is there."""
    if isinstance(error, FileNotFoundError):
        cause = "not_found"
    return StoreError(cause, f"{url}: {name}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """What obstore says in its first line; the others are Rust's own view of it.

    Without the time that a request took, so that equal faults give equal words, and without the
    body of the answer, of which code and message are kept where it is a provider's own XML. What
    is wrong with a certificate is told too.
    """
    text = str(error)
    line = _NOISE.sub(r"\1", (text.splitlines() or [type(error).__name__])[0])
    return line + server_words(text)


def server_words(text: str) -> str:
    """`` (Code: message)`` of a provider's XML, or what is wrong with the server's certificate."""
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code is not None:
        return f" ({code[1]}{f': {message[1]}' if message else ''})"
    certificate = _CERTIFICATE.search(text)
    return (
        "" if certificate is None else f" (the server's certificate is refused: {certificate[1]})"
    )
