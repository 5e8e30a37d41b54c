"""Inputs as the user names them: found, told apart, and read record by record."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.records.formats import coco
from grpo_stream.records.formats.byte_chunks import OnBytes, read_chunks, unpack
from grpo_stream.records.formats.datasets_tables import PREFIX, open_table, table_rows
from grpo_stream.records.formats.detect import Container, check_kind, format_of, look
from grpo_stream.records.formats.find_files import find_files
from grpo_stream.records.formats.forms import Context, Form
from grpo_stream.records.formats.json_stream import (
    JsonText,
    first_byte,
    parse_lines,
    parse_member,
    parse_records,
)
from grpo_stream.records.formats.readers import FORMATS, reader_of, recognise
from grpo_stream.records.formats.rows import refcoco
from grpo_stream.records.formats.rows.plain_records import DOCUMENTED, is_plain_as_it_is
from grpo_stream.records.formats.rules import BoxFormat, Coords, Rules
from grpo_stream.records.formats.webdataset_tars import tar_rows

__all__ = ["FORMATS", "InputSource", "RuleFlags", "expand_inputs", "read_formed", "read_source"]

_KEYS = ("image_key", "prompt_key", "solution_key")


@dataclass(frozen=True)
class InputSource:
    """One input; :func:`expand_inputs` makes them."""

    name: str
    """The path or URL as it was given or found, or ``datasets:SPEC``; a signed URL's query is
    left out."""
    format: str
    """The name of a reader: the user's, or that of the first record."""
    container: Container = "lines"
    """What holds the records; of a document all images and boxes are held in memory."""
    is_told: bool = False
    """The user named the format; else every record is told apart by itself."""
    member: str = ""
    """Of an object that is no document: the member that holds the records."""
    category_prompt: str = coco.DEFAULT_CATEGORY_PROMPT
    """What is asked for a category of COCO, with ``{category}`` in it."""
    query: str = field(default="", repr=False)
    """What follows the ``?`` of a signed URL."""


@dataclass(frozen=True)
class RuleFlags:
    """What the user said of the records; None for what was left open."""

    image_key: str | None = None
    prompt_key: str | None = None
    solution_key: str | None = None
    box_format: BoxFormat | None = None
    coords: Coords | None = None


def expand_inputs(
    words: Sequence[str],
    input_format: str = "auto",
    category_prompt: str = coco.DEFAULT_CATEGORY_PROMPT,
) -> list[InputSource]:
    """Finds the inputs that the user's words mean, and looks at the first record of each.

    A word is a local path, ``file://``, ``s3://``, ``gs://`` or ``az://`` URL, all of them with
    ``*``, ``?``, ``[ab]`` and ``**``; an ``https://`` URL; or ``datasets:SPEC``. Text may be
    packed with gzip or Zstandard.

    Args:
        words: As given; what a pattern finds is sorted.
        input_format: One of :data:`FORMATS`. ``auto`` decides for each record.
        category_prompt: The prompt for a category of COCO.

    Raises:
        ConfigError: nothing is there, it is no input, or the format is unknown or does not go
            with it.
    """
    if input_format not in FORMATS:
        expected = f"must be one of {', '.join(FORMATS)}"
        if input_format.startswith(PREFIX):
            expected = f"is an input: write {input_format} as INPUT, without --format"
        raise ConfigError("--format", input_format, expected)
    if "{category}" not in category_prompt:
        expected = f"must hold {{category}}, as in {coco.DEFAULT_CATEGORY_PROMPT!r}"
        raise ConfigError("--category-prompt", category_prompt, expected)
    sources: list[InputSource] = []
    for word in map(os.fspath, words):
        if word.startswith(PREFIX) or input_format == "datasets":
            name = word if word.startswith(PREFIX) else f"{PREFIX}{word}"
            sources.append(_table_source(name, input_format))
        else:
            sources += [_file_source(*found, input_format) for found in find_files(word)]
    if not sources:
        raise ConfigError("INPUT", "", "must be at least one, for example data/train.jsonl")
    return [replace(source, category_prompt=category_prompt) for source in sources]


def read_source(
    source: InputSource, *, on_bytes: OnBytes | None = None, image_key: str = "image"
) -> Iterator[tuple[int, Any]]:
    """The records of :func:`read_formed` without their forms."""
    for index, _, record in read_formed(source, Rules(image_key=image_key), on_bytes=on_bytes):
        yield index, record


def read_formed(
    source: InputSource, rules: Rules | None = None, *, on_bytes: OnBytes | None = None
) -> Iterator[tuple[int, Form, Any]]:
    """The records of one input in order.

    Arrays, lines, tars and tables are streamed: one raw record at a time is in memory. Of a COCO
    document every image and box is held, about 500 bytes each.

    Args:
        source: From :func:`expand_inputs`.
        rules: What the user calls the fields of plain records, and the field that gets the image
            of a tar or table. Where a field has a name of the user's, all records are plain.
        on_bytes: Gets the bytes of the input as they are stored, in order (of a file
            ``instances.json`` that belongs to it too), or what stands for the rows of a table.

    Yields:
        The 0-based position of the raw record in the input, equal for all records that are made
        from it; its form; and a record: fields by name, any other JSON value, or a RecordError.
        In formats that have fields of their own the names are ``image``, ``prompt`` and
        ``solution``.

    Raises:
        RecordError: the input as a whole is of no use; causes ``input_unreadable``,
            ``input_empty``, ``input_not_utf8``, ``input_not_json``, ``input_not_list``,
            ``input_not_coco``.
        ConfigError: an extra is missing.
    """
    rules = rules or Rules()
    if source.container == "document":
        document = coco.load_document(_json_text(source.name, source.query, on_bytes), source.name)
        if source.format == "coco":
            found = coco.coco_records(document, source.category_prompt)
        else:
            found = refcoco.refcoco_document_records(document)
        for index, formed in found:
            yield index, *_split(formed)
        return
    instances = None
    if source.container in ("array", "lines"):
        instances = refcoco.Instances(lambda: _instances(source, on_bytes)).fields
    is_plain = any(getattr(rules, key) != getattr(Rules(), key) for key in _plain_keys(source))
    name = source.format if source.is_told else "json"
    told = Context(name, source.is_told, rules, instances)
    reader = reader_of(name) if source.is_told or is_plain else None
    contexts = {name: Context(name, False, rules, instances) for name in FORMATS}
    is_documented = reader is None or not reader.has_own_fields
    for index, row in enumerate(_rows(source, on_bytes, rules.image_key)):
        if is_documented and is_plain_as_it_is(row, rules):
            yield index, DOCUMENTED, row  # nearly all: no reader is asked
            continue
        if type(row) is not dict:
            yield index, DOCUMENTED, row
            continue
        known = reader or recognise(row)
        if known is None:
            known = reader_of("json")
        context = told if reader else contexts[known.name]
        for formed in known.records(row, context):
            yield index, *_split(formed)


def rules_of(source: InputSource, base: Rules, flags: RuleFlags | None = None) -> Rules:
    """What the user calls the fields of a source's plain records, and said of its numbers.

    Args:
        source: The input.
        base: What holds where the user said nothing.
        flags: What the user said.

    Raises:
        ConfigError: the user named a field, but the format has fields of its own.
    """
    said = {f.name: getattr(flags, f.name) for f in fields(RuleFlags)} if flags else {}
    given = {name: value for name, value in said.items() if value is not None}
    is_own = source.is_told and reader_of(source.format).has_own_fields
    if is_own or source.container == "document":
        for key in _plain_keys(source):
            if given.get(key, getattr(base, key)) != getattr(Rules(), key):
                flag = f"--{key.replace('_', '-')}"
                expected = (
                    f"goes with plain records, but {source.name} is {source.format}, which has "
                    "fields of its own; leave it out, or add --format json or jsonl"
                )
                raise ConfigError(flag, given.get(key, getattr(base, key)), expected)
    return replace(base, **given)


def _plain_keys(source: InputSource) -> tuple[str, ...]:
    """The names of fields that only the user of plain records may say."""
    return tuple(
        key for key in _KEYS if key != "prompt_key" or not reader_of(source.format).takes_prompt_key
    )


def _split(formed: Any) -> tuple[Form, Any]:
    return (DOCUMENTED, formed) if isinstance(formed, RecordError) else formed


def _table_source(name: str, input_format: str) -> InputSource:
    if input_format != "auto" and "table" not in reader_of(input_format).opens:
        expected = f"does not go with {name}: leave it out, or name the format of its rows"
        raise ConfigError("--format", input_format, expected)
    open_table(name)
    as_format = "datasets" if input_format == "auto" else input_format
    return InputSource(name, as_format, "table", is_told=as_format != "datasets")


def _file_source(name: str, query: str, input_format: str) -> InputSource:
    check_kind(b"", name)
    stored = read_chunks(name, query)
    with closing(stored):
        try:
            first = next(stored, b"")
        except RecordError as error:
            raise ConfigError("INPUT", name, f"cannot be read: {error.detail}") from error
        is_meant_as_tar = input_format == "webdataset"
        found = look(chain([first], stored), name, is_meant_as_tar=is_meant_as_tar)
    is_told = input_format != "auto"
    container = found.container
    if container == "tar":
        if is_told and "tar" not in reader_of(input_format).opens:
            raise ConfigError("--format", input_format, f"does not go with {name}, a tar")
        as_format = input_format if is_told else "webdataset"
        is_told = as_format != "webdataset"
    else:
        as_format = input_format if is_told else format_of(found)
        if as_format == "coco":
            container = "document"
        elif as_format == "jsonl" or (container == "document" and as_format != "refcoco"):
            container = "lines"
    return InputSource(name, as_format, container, is_told, found.member, query=query)


def _rows(source: InputSource, on_bytes: OnBytes | None, image_key: str) -> Iterator[Any]:
    if source.container == "table":
        yield from table_rows(open_table(source.name), source.name, image_key, on_bytes)
        return
    chunks = unpack(read_chunks(source.name, source.query, on_bytes), source.name)
    if source.container == "tar":
        yield from tar_rows(chunks, source.name, image_key)
    elif source.container == "member":
        yield from parse_member(chunks, source.name, source.member)
    elif source.format == "jsonl":
        _, chunks = first_byte(chunks, source.name)
        yield from parse_lines(chunks, source.name)
    else:
        yield from parse_records(chunks, source.name)


def _instances(source: InputSource, on_bytes: OnBytes | None) -> coco.Document:
    folder, slash, _ = source.name.rpartition("/")
    name = f"{folder}{slash}instances.json"
    try:
        return coco.load_document(_json_text(name, source.query, on_bytes), name)
    except RecordError as error:
        detail = f"{source.name} has references without boxes, which {name} must hold"
        raise RecordError(error.cause, f"{detail}: {error.detail}") from error


def _json_text(name: str, query: str, on_bytes: OnBytes | None) -> JsonText:
    return JsonText(unpack(read_chunks(name, query, on_bytes), name), name)
