"""The table of readers: one row for each format, in the order in which they are tried.

A format is one file with a function from a row of the input to records and their form, and one row
here; what ``--format`` offers and how a record is told apart are read from the table. Without
``--format`` every record is read by the first reader that knows its structure, so a file may mix.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_stream.records.formats.chats.conversations import conversation_records, is_conversation
from grpo_stream.records.formats.chats.swift import is_swift, swift_records
from grpo_stream.records.formats.forms import Context, Formed
from grpo_stream.records.formats.rows.easyr1 import easyr1_records, is_easyr1
from grpo_stream.records.formats.rows.elements import element_records, has_elements
from grpo_stream.records.formats.rows.gui_rows import gui_records, is_gui_row
from grpo_stream.records.formats.rows.osworld import is_osworld, osworld_records
from grpo_stream.records.formats.rows.plain_records import is_plain, plain_records
from grpo_stream.records.formats.rows.refcoco import is_reference, refcoco_records
from grpo_stream.records.formats.rows.screenspot import is_screenspot, screenspot_records

Row = Mapping[str, Any]

_FILES = ("array", "lines", "member")
_ROWS = (*_FILES, "tar", "table")


def _never(_: Row) -> bool:
    return False


@dataclass(frozen=True)
class Reader:
    """A format."""

    name: str
    """What ``--format`` calls it."""
    help: str
    """A line for ``--help``."""
    recognises: Callable[[Row], bool]
    """Whether a row has its structure."""
    records: Callable[[Row, Context], Iterable[Formed]]
    """The records of one row with their form, or RecordErrors."""
    opens: tuple[str, ...] = _ROWS
    """The containers that it is read from."""
    has_own_fields: bool = True
    """The records have ``image``, ``prompt`` and ``solution``, whatever the rows call them."""

    @property
    def takes_prompt_key(self) -> bool:
        """The user may name the field that asks, of several that a row has."""
        return self.records in (gui_records, osworld_records, screenspot_records)


READERS: tuple[Reader, ...] = (
    Reader("json", "plain records: image, prompt, solution; an array or lines",
           is_plain, plain_records, _FILES, has_own_fields=False),
    Reader("jsonl", "the same, one record a line",
           _never, plain_records, _FILES, has_own_fields=False),
    Reader("swift", "ms-swift: messages with objects, or with solution beside them",
           is_swift, swift_records),
    Reader("chat", "conversations or messages; the numbers' unit is decided over the file",
           is_conversation, conversation_records),
    Reader("vlm_r1", "conversations whose boxes are in pixels", _never, conversation_records),
    Reader("llava", "conversations whose boxes are in 0-1", _never, conversation_records),
    Reader("easyr1", "EasyR1 and verl: images, problem, answer", is_easyr1, easyr1_records),
    Reader("osworld", "OSWorld-G: box_type says what box_coordinates are",
           is_osworld, osworld_records),
    Reader("elements", "OS-Atlas, ShowUI: one row a screen, its targets in a list",
           has_elements, element_records),
    Reader("screenspot", "ScreenSpot, v2 and Pro: img_filename, instruction, bbox",
           is_screenspot, screenspot_records),
    Reader("refcoco", "RefCOCO, RefCOCO+ and RefCOCOg: references, tables, MDETR's documents",
           is_reference, refcoco_records, (*_ROWS, "document")),
    Reader("gui", "MMBench-GUI L2, UI-Vision and the like: image_path, instruction, bbox",
           is_gui_row, gui_records),
    Reader("mmbench_gui", "the same, with MMBench-GUI L2's boxes: x1, y1, x2, y2 in 0-1",
           _never, gui_records),
    Reader("ui_vision", "the same, with UI-Vision's boxes: two opposite corners in pixels",
           _never, gui_records),
    Reader("coco", "COCO's instances: images, annotations, categories",
           _never, plain_records, ("document", *_FILES)),
    Reader("webdataset", "tars of others: image and .json of one key",
           _never, plain_records, ("tar",), has_own_fields=False),
    Reader("datasets", "what the library datasets loads: write datasets:SPEC",
           _never, plain_records, ("table",), has_own_fields=False),
)  # fmt: skip

FORMATS: tuple[str, ...] = ("auto", *(reader.name for reader in READERS))
"""What the user may call the format of an input."""

_BY_NAME = {reader.name: reader for reader in READERS}
_RECOGNISED = tuple(reader for reader in READERS if reader.recognises is not _never)
_PLAIN = READERS[0]


def reader_of(name: str) -> Reader:
    """The row of a format."""
    return _BY_NAME[name]


def recognise(row: Row) -> Reader | None:
    """The first reader that knows the structure of a row; None where nothing tells."""
    if is_plain(row):
        return _PLAIN
    return next((reader for reader in _RECOGNISED if reader.recognises(row)), None)


def format_help() -> str:
    """The formats, one a line, for ``--help``."""
    lines = [f"  {reader.name:<13}{reader.help}" for reader in READERS]
    return "\n".join(["formats (auto: every record is told apart by its structure):", *lines])
