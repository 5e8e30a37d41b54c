"""Raw records from a JSON array or JSON Lines, one at a time, never the whole file at once."""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.byte_chunks import read_chunks, unpack

_CHUNK_CHARS = 1 << 20
_MAX_RECORD_CHARS = 64 << 20
_SPACE = " \t\r\n"
_SPACE_BYTES = _SPACE.encode()
_NO_SPACE = re.compile(f"[^{_SPACE}]")


def read_records(path: Path) -> Iterator[Any | RecordError]:
    """The records of a local file, which may be packed. See :func:`parse_records`."""
    yield from parse_records(unpack(read_chunks(str(path)), str(path)), str(path))


def parse_records(chunks: Iterator[bytes], name: str) -> Iterator[Any | RecordError]:
    """The records in order; what each is worth is for the judge to say.

    What begins with ``[`` is a JSON array, everything else is JSON Lines. A line that is no JSON
    comes back as a RecordError in its place; blank lines are passed over. Memory holds one record
    and a window of about 1 MiB.

    Args:
        chunks: The unpacked bytes, UTF-8.
        name: The input's, for messages.

    Raises:
        RecordError: the input as a whole is of no use; causes ``input_unreadable``,
            ``input_empty``, ``input_not_utf8``, ``input_not_json`` (a record of more than 64 MiB
            among them), ``input_not_list``.
    """
    first, chunks = first_byte(chunks, name)
    if first == b"[":
        text = JsonText(chunks, name)
        yield from text.elements()
        text.end()
    else:
        yield from parse_lines(chunks, name)


def parse_member(chunks: Iterator[bytes], name: str, member: str) -> Iterator[Any | RecordError]:
    """The records of an array that is a member of an object, ``{"data": [...]}``.

    Raises:
        RecordError: as :func:`parse_records`.
    """
    _, chunks = first_byte(chunks, name)
    text = JsonText(chunks, name)
    for found, position, value in text.members():
        if found == member and position is not None:
            yield value
    text.end()


def first_byte(chunks: Iterator[bytes], name: str) -> tuple[bytes, Iterator[bytes]]:
    """The first byte that is no space, and all bytes again.

    Raises:
        RecordError: cause ``input_empty``.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) > len(codecs.BOM_UTF8) and _without_mark(head).lstrip(_SPACE_BYTES):
            break
        if len(head) > _MAX_RECORD_CHARS:
            break
    first = _without_mark(head).lstrip(_SPACE_BYTES)[:1]
    if not first:
        raise RecordError("input_empty", f"{name} holds nothing")
    return first, chain([head], chunks)


def _without_mark(data: bytes) -> bytes:
    return data.removeprefix(codecs.BOM_UTF8)


def parse_lines(chunks: Iterator[bytes], name: str) -> Iterator[Any | RecordError]:
    """The records of JSON Lines. See :func:`parse_records`."""
    is_first = True
    for number, stored in enumerate(_split_lines(chunks, name), 1):
        line = (_without_mark(stored) if number == 1 else stored).strip(_SPACE_BYTES)
        if not line:
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            if is_first:
                raise RecordError("input_not_utf8", f"{name}: {error}") from error
            record = RecordError("record_not_utf8", f"line {number}: {error}")
        except (ValueError, RecursionError) as error:
            if is_first:  # most likely an object over several lines, or no JSON at all
                detail = (
                    f"{name}: neither a JSON array nor JSON Lines (line {number}: {why(error)})"
                )
                raise RecordError("input_not_list", detail) from error
            record = RecordError("record_not_json", f"line {number}: {why(error)}")
        is_first = False
        yield record


def _split_lines(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    started: list[bytes] = []
    num_bytes = 0
    for chunk in chunks:
        lines = chunk.split(b"\n")
        if len(lines) > 1:
            yield b"".join([*started, lines[0]])
            yield from lines[1:-1]
            started, num_bytes = [], 0
        started.append(lines[-1])
        num_bytes += len(lines[-1])
        if num_bytes > _MAX_RECORD_CHARS:
            raise RecordError("input_not_json", f"{name}: a line of more than 64 MiB")
    yield b"".join(started)


def why(error: Exception) -> str:
    """What is wrong with a JSON text, in words."""
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


class JsonText:
    """One JSON value that is taken apart while it is read.

    Every method raises RecordError; causes ``input_not_json``, ``input_not_utf8`` and
    ``input_unreadable``.

    Args:
        chunks: The bytes, UTF-8.
        name: The input's, for messages.
    """

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self._chunks = chunks
        self._name = name
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._start = 0  # of the window in the text, in characters
        self._window = ""
        self._position = 0

    @property
    def num_taken(self) -> int:
        """Characters that were taken."""
        return self._start + self._position

    def peek(self) -> str:
        """The next character that is no space, not taken; empty at the end."""
        while True:
            if found := _NO_SPACE.search(self._window, self._position):
                self._position = found.start()
                return found.group()
            self._position = len(self._window)
            if not self._read_more(_CHUNK_CHARS):
                return ""

    def take(self, character: str) -> None:
        """Takes a punctuation mark, which must come next."""
        if (found := self.peek()) != character:
            what = repr(found) if found else "the file's end"
            raise self._error(f"expected {character!r}, found {what} at character {self.num_taken}")
        self._position += 1

    def elements(self) -> Iterator[Any]:
        """Takes an array, element by element."""
        self.take("[")
        if self.peek() != "]":
            yield self.value()
            while self.peek() == ",":
                self.take(",")
                yield self.value()
        self.take("]")

    def members(self) -> Iterator[tuple[str, int | None, Any]]:
        """Takes an object, member by member, and members that are arrays element by element.

        Yields:
            The name, the element's position in the array (None where the member is no array),
            and the value.
        """
        self.take("{")
        if self.peek() != "}":
            yield from self._member()
            while self.peek() == ",":
                self.take(",")
                yield from self._member()
        self.take("}")

    def _member(self) -> Iterator[tuple[str, int | None, Any]]:
        if not isinstance(name := self.value(), str):
            raise self._error(f"an object's member without a name at character {self.num_taken}")
        self.take(":")
        if self.peek() == "[":
            for position, element in enumerate(self.elements()):
                yield name, position, element
        else:
            yield name, None, self.value()

    def value(self) -> Any:
        """Takes one JSON value; what is cut off by the window's end is read on."""
        self.peek()
        num_chars = _CHUNK_CHARS
        while True:
            try:
                value, end = self._json.raw_decode(self._window, self._position)
            except json.JSONDecodeError as error:
                # Cut off or damaged: more text tells. Reading twice as much each time keeps
                # the work linear.
                position = self._start + error.pos
                if len(self._window) - self._position > _MAX_RECORD_CHARS:
                    detail = f"damaged, or a record of more than 64 MiB, at character {position}"
                    raise self._error(detail) from error
                if not self._read_more(num_chars):
                    raise self._error(f"{error.msg} at character {position}") from error
            except (ValueError, RecursionError) as error:  # too many digits, nested too deep
                raise self._error(f"{why(error)} at character {self.num_taken}") from error
            else:
                if end < len(self._window):
                    self._position = end
                    return value
                if not self._read_more(num_chars):  # else a number may go on
                    self._position = len(self._window)
                    return value
            num_chars *= 2

    def end(self) -> None:
        """Checks that nothing follows."""
        if found := self.peek():
            raise self._error(f"unexpected {found!r} at character {self.num_taken}, after the end")

    def _error(self, detail: str) -> RecordError:
        return RecordError("input_not_json", f"{self._name}: {detail}")

    def _read_more(self, num_chars: int) -> bool:
        parts: list[str] = []
        missing = num_chars
        try:
            while missing > 0:
                chunk = next(self._chunks, None)
                if chunk is None:
                    parts.append(self._utf8.decode(b"", final=True))
                    break
                parts.append(self._utf8.decode(chunk))
                missing -= len(parts[-1])
        except UnicodeDecodeError as error:
            raise RecordError("input_not_utf8", f"{self._name}: {error}") from error
        more = "".join(parts)
        self._window = self._window[self._position :] + more
        self._start += self._position
        self._position = 0
        return bool(more)
