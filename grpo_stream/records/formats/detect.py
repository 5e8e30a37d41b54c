"""Which format an input has, by its name and the first of its content."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Literal

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.records.formats.byte_chunks import unpack
from grpo_stream.records.formats.conversations import is_conversation
from grpo_stream.records.formats.json_stream import JsonText, first_byte, parse_lines
from grpo_stream.records.formats.readers import Layout, reader_of, recognise
from grpo_stream.records.formats.webdataset_tars import tar_rows

Container = Literal["array", "lines", "document", "tar", "table"]
"""What holds the records: a JSON array, JSON Lines, one JSON object, a tar or a table."""

_FIRST_CHARS = 16 << 20
_HEAD_BYTES = 512
_PICKLE_TO_JSON = (
    "is a pickle, which can run code of its maker when it is opened. If you trust it, make JSON of "
    'it, for example: python -c "import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], '
    "'rb')), open('refs.json', 'w'))\" 'refs(unc).p'"
)


def check_kind(head: bytes, name: str) -> None:
    """Refuses what is no text and no tar.

    Args:
        head: The first bytes, unpacked.
        name: The input's.

    Raises:
        ConfigError: a pickle, a Parquet file, a zip file.
    """
    low = name.lower()
    if head.startswith(b"\x80") or low.endswith((".p", ".pkl", ".pickle")):
        raise ConfigError("INPUT", name, _PICKLE_TO_JSON)
    if head.startswith((b"PAR1", b"ARROW1")) or low.endswith((".parquet", ".arrow")):
        raise ConfigError("INPUT", name, f"is a table: write datasets:{name}")
    if head.startswith(b"PK\x03\x04"):
        raise ConfigError("INPUT", name, "is a zip file: unpack it, or pack it with gzip or zstd")


def look(
    stored: Iterator[bytes], name: str, *, is_meant_as_tar: bool
) -> tuple[Container, dict[str, Any]]:
    """What holds the records, and the first of them, empty where that is no object.

    Damage is left to the reading: it comes out as an array or a tar without records.

    Args:
        stored: The input's bytes as they are stored.
        name: The input's.
        is_meant_as_tar: It is a tar, whatever it looks like.

    Raises:
        ConfigError: a pickle, a Parquet file, a zip file; or an extra is missing.
    """
    container: Container = "tar" if is_meant_as_tar else "array"
    try:
        chunks = unpack(stored, name)
        head = b""
        for chunk in chunks:
            head += chunk
            if len(head) >= _HEAD_BYTES:
                break
        check_kind(head, name)
        chunks = chain([head], chunks)
        if not (is_meant_as_tar or _is_tar(head, name)):
            return _first_record(chunks, name)
        container = "tar"
        row = next(tar_rows(chunks, name, "image"), None)
    except RecordError:
        row = None
    return container, row if isinstance(row, dict) else {}


def format_of(container: Container, record: Mapping[str, Any]) -> str:
    """The format of the first record, plain records where nothing tells."""
    if container == "document":
        is_refcoco = {"caption", "expressions", "tokens_positive"} & record.keys()
        return "refcoco" if is_refcoco else "coco"
    plain = "json" if container == "array" else "jsonl"
    found = recognise(record)
    if found is None and is_conversation(record):  # no answer that would tell
        return "vlm_r1" if container == "lines" else "llava"
    return plain if found in (None, "json") else str(found)


def layout_of(input_format: str, first_row: Any, *, is_document: bool = False) -> Layout:
    """How a format writes its boxes, seen in the first row for some; None where it is open."""
    if is_document:
        return "xywh", "pixels"
    record: Mapping[str, Any] = first_row if isinstance(first_row, dict) else {}
    return reader_of(input_format).layout(record)


def _is_tar(head: bytes, name: str) -> bool:
    """Whether this is a tar, by its magic or its name."""
    return head[257:262] == b"ustar" or name.lower().endswith(
        (".tar", ".tar.gz", ".tgz", ".tar.zst")
    )


def _first_record(chunks: Iterator[bytes], name: str) -> tuple[Container, dict[str, Any]]:
    """What holds the records, and the first of them, empty where that is no object.

    For a document it is the first image or annotation; not more than 16 MiB are read of an object.

    Args:
        chunks: The unpacked bytes.
        name: The input's.

    Raises:
        RecordError: the input is damaged.
    """
    first, chunks = first_byte(chunks, name)
    if first == b"[":
        record = next(JsonText(chunks, name).elements(), None)
        return "array", record if isinstance(record, dict) else {}
    if first != b"{":
        record = next(parse_lines(chunks, name), None)
        return "lines", record if isinstance(record, dict) else {}
    text = JsonText(chunks, name)
    record = {}
    for member, position, value in text.members():
        if position is None:
            record[member] = value
        elif position == 0:
            record[member] = [value]
        elif isinstance(record[member], list):
            record[member].append(value)
        # No record has a list of such objects; a document may go on for gigabytes.
        if position == 0 and _is_entry(member, value):
            return "document", value
        if text.num_taken > _FIRST_CHARS:
            break
    return "lines", record


def _is_entry(member: str, value: object) -> bool:
    names = {"images": {"id", "file_name"}, "annotations": {"id", "image_id"}}.get(member)
    return isinstance(value, dict) and names is not None and names <= value.keys()
