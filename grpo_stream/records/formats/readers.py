"""The table of readers: one row for each format, in the order in which they are tried.

A format is one file with a function from a row of the input to records, and one row here; what
``--format`` offers, how a file is told apart and how its boxes are written are read from the table.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_stream.records.formats import conversations, refcoco, screenspot
from grpo_stream.records.formats.rules import BoxFormat, Coords

Row = Mapping[str, Any]
Layout = tuple[BoxFormat, Coords] | None
"""How boxes are written; None where the user decides."""


def _as_it_is(row: Row, _: refcoco.Instances | None) -> Iterable[Any]:
    return (row,)


def _open_layout(_: Row) -> Layout:
    return None


def _never(_: Row) -> bool:
    return False


@dataclass(frozen=True)
class Reader:
    """A format."""

    name: str
    """What ``--format`` calls it."""
    help: str
    """A line for ``--help``."""
    recognises: Callable[[Row], bool] = _never
    """Whether a row has its structure."""
    records: Callable[[Row, refcoco.Instances | None], Iterable[Any]] = _as_it_is
    """The records of one row: fields by name, or RecordErrors. The second argument is COCO's
    ``instances.json`` beside a file, for rows that only name an annotation."""
    layout: Callable[[Row], Layout] = _open_layout
    """How an input that begins with a row writes its boxes."""
    has_own_fields: bool = False
    """The records have ``image``, ``prompt`` and ``solution``, whatever the rows call them."""
    opens: tuple[str, ...] = ("array", "lines", "document", "tar", "table")
    """The containers that it is read from."""


READERS: tuple[Reader, ...] = (
    Reader(
        "json",
        "a JSON array (or lines) of plain records: image, prompt, solution",
        lambda row: {"image", "prompt", "solution"} <= row.keys(),
        opens=("array", "lines", "document"),
    ),
    Reader("jsonl", "the same, one record a line", opens=("array", "lines", "document")),
    Reader(
        "llava",
        "conversations whose answers hold boxes in 0-1",
        lambda row: conversations.first_scale(row) == "unit",
        lambda row, _: conversations.conversation_records(row),
        lambda _: ("xyxy", "unit"),
        has_own_fields=True,
    ),
    Reader(
        "vlm_r1",
        "conversations whose answers hold boxes in pixels",
        lambda row: conversations.first_scale(row) == "pixels",
        lambda row, _: conversations.conversation_records(row),
        lambda _: ("xyxy", "pixels"),
        has_own_fields=True,
    ),
    Reader(
        "screenspot",
        "ScreenSpot, v2 and Pro: img_filename, instruction, bbox",
        lambda row: {"img_filename", "bbox"} <= row.keys(),
        lambda row, _: screenspot.screenspot_records(row),
        screenspot.screenspot_layout,
        has_own_fields=True,
    ),
    Reader(
        "refcoco",
        "RefCOCO, RefCOCO+ and RefCOCOg: references, tables, MDETR's documents",
        refcoco.is_reference,
        refcoco.refcoco_records,
        refcoco.refcoco_layout,
        has_own_fields=True,
    ),
    Reader(
        "coco",
        "COCO's instances: one document of images, annotations and categories",
        layout=lambda _: ("xywh", "pixels"),
        has_own_fields=True,
        opens=("array", "lines", "document"),
    ),
    Reader("webdataset", "tars of others: image and .json of one key", opens=("tar",)),
    Reader("datasets", "what the library datasets loads: write datasets:SPEC", opens=("table",)),
)

FORMATS: tuple[str, ...] = ("auto", *(reader.name for reader in READERS))
"""What the user may call the format of an input."""

_BY_NAME = {reader.name: reader for reader in READERS}


def reader_of(name: str) -> Reader:
    """The row of a format."""
    return _BY_NAME[name]


def recognise(row: Row) -> str | None:
    """The first format that a row has the structure of; None where nothing tells."""
    return next((reader.name for reader in READERS if reader.recognises(row)), None)


def format_help() -> str:
    """The formats, one a line, for ``--help``."""
    lines = [f"  {reader.name:<11}{reader.help}" for reader in READERS]
    return "\n".join(["formats (auto: each input is looked at):", *lines])
