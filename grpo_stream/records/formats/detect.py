"""What holds the records of an input, and which format its first record has."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal, NamedTuple

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.records.formats.byte_chunks import unpack
from grpo_stream.records.formats.json_stream import JsonText, first_byte, parse_lines
from grpo_stream.records.formats.readers import recognise
from grpo_stream.records.formats.webdataset_tars import tar_rows

Container = Literal["array", "lines", "member", "document", "tar", "table"]
"""What holds the records: a JSON array, JSON Lines, an array in an object (``{"data": [...]}``),
COCO's document, a tar or a table."""


class Looked(NamedTuple):
    """What the beginning of an input says."""

    container: Container
    record: dict[str, Any]
    """The first record, empty where that is no object; of a document its first entry."""
    member: str = ""
    """Of an object: the member that holds the records."""


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


def look(stored: Iterator[bytes], name: str, *, is_meant_as_tar: bool) -> Looked:
    """What holds the records, and the first of them.

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
    return Looked(container, row if isinstance(row, dict) else {})


def format_of(found: Looked) -> str:
    """The format of the first record, plain records where nothing tells."""
    if found.container == "document":
        is_refcoco = {"caption", "expressions", "tokens_positive"} & found.record.keys()
        return "refcoco" if is_refcoco else "coco"
    reader = recognise(found.record)
    if reader is None or reader.name == "json":
        return "jsonl" if found.container == "lines" else "json"
    return reader.name


def _is_tar(head: bytes, name: str) -> bool:
    """Whether this is a tar, by its magic or its name."""
    return head[257:262] == b"ustar" or name.lower().endswith(
        (".tar", ".tar.gz", ".tgz", ".tar.zst")
    )


def _first_record(chunks: Iterator[bytes], name: str) -> Looked:
    """What holds the records of JSON; not more than 16 MiB are read of an object.

    Args:
        chunks: The unpacked bytes.
        name: The input's.

    Raises:
        RecordError: the input is damaged.
    """
    first, chunks = first_byte(chunks, name)
    if first == b"[":
        record = next(JsonText(chunks, name).elements(), None)
        return Looked("array", record if isinstance(record, dict) else {})
    if first != b"{":
        record = next(parse_lines(chunks, name), None)
        return Looked("lines", record if isinstance(record, dict) else {})
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
        if position == 0 and isinstance(value, dict):
            if _is_entry(member, value):
                return Looked("document", value)
            if recognise(value) is not None:
                return Looked("member", value, member)
        if text.num_taken > _FIRST_CHARS:
            break
    return Looked("lines", record)


def _is_entry(member: str, value: dict[str, Any]) -> bool:
    names = {"images": {"id", "file_name"}, "annotations": {"id", "image_id"}}.get(member)
    return names is not None and names <= value.keys()
