"""Raw records from a JSON array or JSON Lines, one at a time, never the whole file at once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from grpo_stream.errors import RecordError

_CHUNK_CHARS = 1 << 20
_SPACE = " \t\r\n"


def read_records(path: Path) -> Iterator[Any | RecordError]:
    """The records of one file in order; what each is worth is for the judge to say.

    A file whose first character is ``[`` is a JSON array, every other one is JSON Lines. A line
    that is no JSON comes back as a RecordError in its place; blank lines are passed over.

    Raises:
        RecordError: the file as a whole is of no use; causes ``input_unreadable``,
            ``input_empty``, ``input_not_utf8``, ``input_not_json``, ``input_not_list``.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            first = _first_character(file)
            if first == "":
                raise RecordError("input_empty", f"{path} holds nothing")
            file.seek(0)
            yield from _array(file, path) if first == "[" else _lines(file, path)
    except UnicodeDecodeError as error:
        raise RecordError("input_not_utf8", f"{path}: {error}") from error
    except OSError as error:
        raise RecordError("input_unreadable", f"{path}: {error.strerror}") from error


def _first_character(file: TextIO) -> str:
    while chunk := file.read(4096):
        if text := chunk.lstrip(_SPACE):
            return text[0]
    return ""


def _lines(file: TextIO, path: Path) -> Iterator[Any | RecordError]:
    is_first = True
    for number, line in enumerate(file, 1):
        if not line.strip(_SPACE):
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if is_first:  # most likely an object over several lines, or no JSON at all
                detail = f"{path}: neither a JSON array nor JSON Lines (line {number}: {error})"
                raise RecordError("input_not_list", detail) from error
            record = RecordError("record_not_json", f"line {number}: {error}")
        is_first = False
        yield record


def _array(file: TextIO, path: Path) -> Iterator[Any]:
    text = _Text(file, path)
    text.take("[")
    if text.peek() != "]":
        yield text.element()
        while text.peek() == ",":
            text.take(",")
            yield text.element()
    text.take("]")
    if text.peek():
        raise text.error(f"unexpected {text.peek()!r} after the array's end")


class _Text:
    """A window on the file: what is read but not yet taken."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._decoder = json.JSONDecoder()
        self._start = 0  # of the window in the file, in characters
        self._window = ""
        self._position = 0

    def peek(self) -> str:
        """The next character that is no space, not taken; empty at the file's end."""
        while True:
            while self._position < len(self._window):
                if (character := self._window[self._position]) not in _SPACE:
                    return character
                self._position += 1
            if not self._read_more(_CHUNK_CHARS):
                return ""

    def take(self, character: str) -> None:
        """Takes a punctuation mark, which must come next."""
        if (found := self.peek()) != character:
            what = repr(found) if found else "the file's end"
            raise self.error(f"expected {character!r}, found {what}")
        self._position += 1

    def element(self) -> Any:
        """Takes one JSON value; what is cut off by the window's end is read on."""
        self.peek()
        num_chars = _CHUNK_CHARS
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._position)
            except json.JSONDecodeError as error:
                # Cut off or damaged: more text tells. Reading twice as much each time keeps
                # the work linear.
                position = self._start + error.pos
                if not self._read_more(num_chars):
                    raise self.error(f"{error.msg} at character {position}") from error
            except (ValueError, RecursionError) as error:  # too many digits, nested too deep
                raise self.error(str(error)) from error
            else:
                if end < len(self._window):
                    self._position = end
                    return value
                if not self._read_more(num_chars):  # else a number may go on
                    self._position = len(self._window)
                    return value
            num_chars *= 2

    def error(self, detail: str) -> RecordError:
        """An error that names the file."""
        return RecordError("input_not_json", f"{self._path}: {detail}")

    def _read_more(self, num_chars: int) -> bool:
        more = self._file.read(num_chars)
        self._window = self._window[self._position :] + more
        self._start += self._position
        self._position = 0
        return bool(more)
