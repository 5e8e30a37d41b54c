"""Raw records of any format that the shard builder reads, as a source without shards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.images import DEFAULT_LIMITS, ImageLimits
from grpo_stream.records.formats.open_inputs import (
    InputSource,
    expand_inputs,
    read_source,
    rules_of,
)
from grpo_stream.records.formats.rules import Rules
from grpo_stream.stream.record_source import RecordSource

_HOLD_IMAGES = ("tar", "table")


def open_records(
    words: Sequence[str],
    input_format: str = "auto",
    images_root: str | Path | None = None,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> RecordSource:
    """The records of one or several inputs, one after another.

    All of them are held in memory, in tables and tars with their images; for more than some hundred
    thousand, build shards.

    Args:
        words: Files, globs, URLs or ``datasets:SPEC``.
        input_format: One of ``grpo_stream.records.formats.open_inputs.FORMATS``.
        images_root: Folder that image paths start from; not needed where inputs hold the images.
        limits: What an image may be at most.

    Raises:
        ConfigError: an input is not there or is no input, the format is unknown, inputs write their
            boxes in different ways, or ``images_root`` is needed and no folder.
        RecordError: an input is damaged.
    """
    try:
        inputs = expand_inputs(words, input_format)
    except ConfigError as error:
        field = {"--format": "format", "INPUT": "json"}.get(error.field, error.field)
        raise ConfigError(field, error.value, error.expected) from error
    rules = [rules_of(one, Rules()) for one in inputs]
    for one, other in zip(inputs, rules, strict=True):
        if other != rules[0]:
            expected = f"has boxes in another form than {inputs[0].name}; take one at a time"
            raise ConfigError("json", one.name, expected)
    if images_root is None:
        if any(one.container not in _HOLD_IMAGES for one in inputs):
            raise ConfigError("images_root", None, "is needed with json: the images' folder")
        images_root = Path()
    records = [record for one in inputs for record in _records(one)]
    if not records:
        raise ConfigError("json", list(words), "holds no records")
    return RecordSource(records, images_root, rules[0], limits)


def _records(one: InputSource) -> list[Mapping[str, Any]]:
    records = []
    for position, record in read_source(one):
        if isinstance(record, RecordError):
            raise RecordError(record.cause, f"{one.name}: record {position}: {record.detail}")
        records.append(record)
    return records
