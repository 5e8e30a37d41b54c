"""What S3's protocol says in XML, as far as an object store's clients here ask for it."""

import re
import zlib
from collections.abc import Iterable, Mapping
from urllib.parse import unquote
from xml.sax.saxutils import escape, unescape

_DATE = "2026-01-01T00:00:00.000Z"


def error(code: str) -> bytes:
    """The body of a refusal; ``code`` is S3's word for it."""
    return f"<Error><Code>{code}</Code></Error>".encode()


def listing(
    objects: Mapping[str, bytes | memoryview], bucket: str, prefix: str, delimiter: str
) -> bytes:
    """ListObjectsV2 in one page: the keys of ``bucket`` that begin with ``prefix``.

    Args:
        objects: ``bucket/key`` -> content.
        bucket: Its name.
        prefix: May be empty.
        delimiter: Keys that hold it behind the prefix are told as a folder; empty for none.
    """
    start = f"{bucket.rstrip('/')}/"
    found: list[str] = []
    folders: set[str] = set()
    for name, data in sorted(objects.items()):
        key = name.removeprefix(start)
        if not (name.startswith(start) and key.startswith(prefix)):
            continue
        folder, is_below, _ = key[len(prefix) :].partition(delimiter or "\0")
        if is_below:
            folders.add(prefix + folder + delimiter)
            continue
        found.append(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
            f"<LastModified>{_DATE}</LastModified><ETag>{tag_of(data)}</ETag></Contents>"
        )
    found += [
        f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
        for folder in sorted(folders)
    ]
    return f"<ListBucketResult>{''.join(found)}</ListBucketResult>".encode()


def keys_to_delete(body: bytes) -> list[str]:
    """The keys of a DeleteObjects request."""
    found = re.findall(r"<Key>(.*?)</Key>", body.decode())
    return [unquote(unescape(key)) for key in found]


def deleted(keys: Iterable[str]) -> bytes:
    """The answer to it."""
    items = (f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
    return f"<DeleteResult>{''.join(items)}</DeleteResult>".encode()


def upload_begun(upload: str) -> bytes:
    """The answer to CreateMultipartUpload."""
    inner = f"<UploadId>{upload}</UploadId>"
    return f"<InitiateMultipartUploadResult>{inner}</InitiateMultipartUploadResult>".encode()


def upload_completed() -> bytes:
    """The answer to CompleteMultipartUpload."""
    inner = "<ETag>x</ETag>"
    return f"<CompleteMultipartUploadResult>{inner}</CompleteMultipartUploadResult>".encode()


def tag_of(data: bytes | memoryview) -> str:
    """An ETag: of another one for contents of other lengths, beginnings or ends."""
    ends = zlib.crc32(data[-4096:], zlib.crc32(data[:4096]))
    return f'"{len(data)}-{ends:08x}"'
