"""Raw records of any format that the shard builder reads, as a source without shards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.images import DEFAULT_LIMITS, ImageLimits
from grpo_stream.records.form_book import FormBook
from grpo_stream.records.formats.open_inputs import (
    InputSource,
    RuleFlags,
    expand_inputs,
    read_formed,
    rules_of,
)
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.image_files import is_relative
from grpo_stream.records.stored_image import ImageReader, PictureRules
from grpo_stream.stream.record_source import RecordSource

_HOLD_IMAGES = ("tar", "table")
_DAMAGE = ("record_", "input_")
_FIELDS = {"--format": "format", "INPUT": "json"}


def open_records(
    words: Sequence[str],
    input_format: str = "auto",
    images_root: str | Path | None = None,
    *,
    flags: RuleFlags | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    marks_inputs: bool = False,
) -> RecordSource:
    """The records of one or several inputs, one after another.

    Each is read by its own form, decided as the shard builder decides it. Rows that have no target
    are left out, which the source's ``readings`` say. All records are held in memory, in tables and
    tars with their images; for more than some hundred thousand, build shards.

    Args:
        words: Files, globs, URLs or ``datasets:SPEC``.
        input_format: One of ``grpo_stream.records.formats.readers.FORMATS``.
        images_root: Folder that image paths start from; not needed where inputs hold the images,
            or all paths are absolute.
        flags: What the user said of the records.
        limits: What an image may be at most.
        marks_inputs: Of several inputs, each record gets the name of its own as ``input_file``.

    Raises:
        ConfigError: an input is not there or is no input, the format is unknown, its records fit
            several readings, or ``images_root`` is needed and no folder.
        RecordError: an input is damaged.
    """
    with _named_as_settings():
        inputs = expand_inputs(words, input_format)
        base = [rules_of(one, Rules(several="keep"), flags) for one in inputs]
    book = FormBook(base)
    left_out = Counter[str]()
    rows = list(_rows(inputs, base, book, left_out))
    if not rows:
        raise ConfigError("json", list(words), "holds no records")
    if images_root is None:
        images_root = _root_of(inputs, [record for _, record in rows], base[0].image_key)
    reader = ImageReader(str(images_root), PictureRules(limits=limits))
    try:
        forms = book.decide(reader.size_of, flags, None)
    finally:
        reader.close()
    names = [one.name for one in inputs]
    with _named_as_settings():
        forms.check(names)
    records = [record for _, record in rows]
    if marks_inputs and len(inputs) > 1:
        records = [
            {"input_file": PurePath(names[forms.input_of(form)]).name, **record}
            if isinstance(record, Mapping)
            else record
            for form, record in rows
        ]
    rules = [forms.rules[form] for form, _ in rows]
    said = forms.lines(names)
    if left_out:
        causes = ", ".join(f"{cause} {count}" for cause, count in left_out.most_common(3))
        num_all = left_out.total() + len(rows)
        said.append(f"{left_out.total()} of {num_all} records are left out: {causes}")
    return RecordSource(records, images_root, rules, limits, readings=said)


def _root_of(
    inputs: Sequence[InputSource], records: Sequence[Mapping[str, Any]], image_key: str
) -> Path:
    """Where image paths start from when nobody says it: nowhere, or they are absolute."""
    if all(one.container in _HOLD_IMAGES for one in inputs):
        return Path()
    if not any(is_relative(record.get(image_key)) for record in records):
        return Path("/")
    expected = "is needed with json: the folder of the images, which are no absolute paths"
    raise ConfigError("images_root", None, expected)


def _rows(
    inputs: Sequence[InputSource], base: Sequence[Rules], book: FormBook, left_out: Counter[str]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, one in enumerate(inputs):
        for position, form, record in read_formed(one, base[number]):
            if not isinstance(record, RecordError):
                form_number = book.number(number, form)
                book.add(form_number, position, record)
                yield form_number, record
            elif record.cause.startswith(_DAMAGE):
                raise RecordError(record.cause, f"{one.name}: record {position}: {record.detail}")
            else:
                left_out[record.cause] += 1


@contextmanager
def _named_as_settings() -> Iterator[None]:
    """Errors name a setting as the user writes it."""
    try:
        yield
    except ConfigError as error:
        field = _FIELDS.get(error.field, error.field)
        raise ConfigError(field, error.value, error.expected) from error
