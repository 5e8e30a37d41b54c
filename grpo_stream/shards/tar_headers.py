"""Tar members in bytes: the plain ustar headers that we write, and the dialects that we read."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from grpo_stream.errors import ShardFormatError

BLOCK = 512
"""Tar headers and contents are padded to this many bytes."""

END = bytes(2 * BLOCK)
"""What ends an archive."""

_MAX_MEMBER_BYTES = 2**31  # no image or JSON is larger; a damaged header may say anything
_FILE, _FOLDER, _PAX, _PAX_GLOBAL, _LONG_NAME = (b"0", b"\0", b"7"), b"5", b"x", b"g", b"L"


_NAME_BYTES = 100
_BEFORE_SIZE = b"0000644\0" + 2 * b"0000000\0"  # mode, user, group
_AFTER_SIZE = b"\0" + b"00000000000\0"  # time
_AFTER_CHECKSUM = b"\0 0" + bytes(100) + b"ustar\x0000" + bytes(247)  # kind 0: a file
_FIXED_SUM = sum(_BEFORE_SIZE + _AFTER_SIZE + _AFTER_CHECKSUM) - sum(b"\0 ") + 8 * 0x20


class Member(NamedTuple):
    """One file in a tar."""

    name: str
    data: bytes
    offset: int
    """First byte of its header, extension headers included."""
    data_offset: int
    """First byte of its content."""


def make_header(name: str, num_bytes: int) -> bytes:
    """The ustar header of a file; no time, owner or user gets in.

    Written by hand: ``tarfile`` takes about twenty times as long for the same bytes.

    Args:
        name: At most 100 bytes in UTF-8.
        num_bytes: Of the content, below 8 GiB.

    Raises:
        ValueError: the name or the content is too long.
    """
    encoded = name.encode()
    if len(encoded) > _NAME_BYTES or num_bytes >= 8**11:
        raise ValueError(f"{name!r} of {num_bytes} bytes does not fit a plain tar header")
    size = b"%011o" % num_bytes
    checksum = _FIXED_SUM + sum(encoded) + sum(size)
    return b"".join(
        (
            encoded.ljust(_NAME_BYTES, b"\0"),
            _BEFORE_SIZE,
            size,
            _AFTER_SIZE,
            b"%06o" % checksum,
            _AFTER_CHECKSUM,
        )
    )


def padding(num_bytes: int) -> bytes:
    """What follows a content of ``num_bytes``, up to the next header."""
    return _PADDINGS[-num_bytes % BLOCK]


_PADDINGS = [bytes(length) for length in range(BLOCK)]


def iter_members(
    fileobj: BinaryIO, shard: str, base: int = 0, *, is_whole: bool
) -> Iterator[Member]:
    """The files of a tar, or of a run of its members, in order.

    ustar, pax and GNU long names are understood; folders are passed over.

    Args:
        fileobj: Read forwards only.
        shard: The shard's name, for error messages.
        base: Where in the shard ``fileobj`` starts, for error messages and offsets.
        is_whole: The bytes are a whole archive, which must end with its end mark.

    Raises:
        ShardFormatError: causes ``bad_header``, ``bad_member`` (links, devices, ...) and
            ``truncated``.
    """
    position = base
    start: int | None = None  # where the extension headers of the coming file start
    overrides: dict[str, str] = {}
    while True:
        header = fileobj.read(BLOCK)
        if not header and not is_whole and start is None:
            return
        if len(header) < BLOCK:
            detail = f"{shard} ends at byte {position + len(header)}, in or before a tar header"
            raise ShardFormatError("truncated", detail)
        if header.count(0) == BLOCK:
            return
        where = f"{shard} at byte {position}"
        kind, name, num_bytes = _parse_header(header, where)
        if kind in _FILE:
            name = overrides.get("path", name)
            num_bytes = _number(overrides.get("size", str(num_bytes)), where)
        num_padding = -num_bytes % BLOCK
        data = fileobj.read(num_bytes)
        num_read = len(data) + len(fileobj.read(num_padding))
        if num_read < num_bytes + num_padding:
            detail = f"{shard} ends at byte {position + BLOCK + num_read}, inside {name!r}"
            raise ShardFormatError("truncated", detail)
        if kind in _FILE:
            if any(key.startswith("GNU.sparse.") for key in overrides):
                detail = f"{where}: {name!r} is a sparse file, only plain files are expected"
                raise ShardFormatError("bad_member", detail)
            yield Member(name, data, position if start is None else start, position + BLOCK)
            start, overrides = None, {}
        elif kind in (_PAX, _LONG_NAME):
            start = position if start is None else start
            overrides |= _parse_pax(data, where) if kind == _PAX else {"path": _text(data)}
        elif kind == _FOLDER:
            start, overrides = None, {}
        elif kind != _PAX_GLOBAL:
            detail = f"{where}: {name!r} is of tar type {kind!r}, only files are expected"
            raise ShardFormatError("bad_member", detail)
        position += BLOCK + num_bytes + num_padding


def plain_name(header: bytes, where: str) -> str | None:
    """The name in a file's header; None where another header says it.

    Args:
        header: 512 bytes.
        where: For error messages.

    Raises:
        ShardFormatError: cause ``bad_header``.
    """
    kind, name, _ = _parse_header(header, where)
    return name if kind in _FILE else None


def _parse_header(header: bytes, where: str) -> tuple[bytes, str, int]:
    field = header[148:156].strip(b" \0")
    checksum = sum(header) - sum(header[148:156]) + 8 * 32
    try:
        is_sound = int(field, 8) == checksum
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ShardFormatError("bad_header", f"{where}: no tar header (its checksum is wrong)")
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    if header[124] & 0x80:  # GNU: a size of 8 GiB and more, in base 256
        size = int.from_bytes(header[125:136], "big")
    else:
        octal = header[124:136].strip(b" \0") or b"0"
        if not octal.isdigit():
            raise ShardFormatError("bad_header", f"{where}: member size {octal!r} is no number")
        size = int(octal, 8)
    if size > _MAX_MEMBER_BYTES:
        raise ShardFormatError("bad_header", f"{where}: {name!r} is said to have {size} bytes")
    return header[156:157], name, size


def _parse_pax(data: bytes, where: str) -> dict[str, str]:
    records: dict[str, str] = {}
    while data:
        length, _, rest = data.partition(b" ")
        num_bytes = _number(_text(length), where)
        if not len(length) + 1 < num_bytes <= len(data):
            raise ShardFormatError("bad_header", f"{where}: damaged pax header")
        key, _, value = rest[: num_bytes - len(length) - 2].partition(b"=")
        records[_text(key)] = _text(value)
        data = data[num_bytes:]
    return records


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > _MAX_MEMBER_BYTES:
        raise ShardFormatError("bad_header", f"{where}: {text[:40]!r} is no size in bytes")
    return int(text)


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")
