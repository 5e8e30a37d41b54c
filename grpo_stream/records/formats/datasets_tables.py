"""Rows of whatever ``datasets`` loads: Parquet, Arrow, image folders, data sets of the hub."""

import glob
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_stream.checksum import crc32
from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.records.formats.byte_chunks import OnBytes
from grpo_stream.records.formats.image_values import has_image_magic
from grpo_stream.records.formats.inline_image import InlineImage

PREFIX = "datasets:"
"""What an input begins with that ``datasets`` loads."""

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
_EXPECTED = "as in datasets:hub/id, datasets:hub/id:config:split, datasets:rows/*.parquet"


def open_table(name: str) -> Any:
    """The table, opened but not read: a ``datasets.IterableDataset`` whose images stay bytes.

    ``datasets`` imports torch for its iterable data sets where torch is installed. It is told to
    leave it while it is imported here; when something else imported it before, it does as it
    likes.

    Args:
        name: ``datasets:ID``, ``datasets:ID:CONFIG:SPLIT`` (either may be empty), a folder, or
            a pattern of Parquet, Arrow or JSON files in place of ID.

    Raises:
        ConfigError: there is no such table, or it has several splits and none is named.
    """
    library = _import_datasets(name)
    path, config, split = _parse(name)
    files = sorted(glob.glob(path, recursive=True)) if not Path(path).is_dir() else []  # noqa: PTH207
    builder = _BUILDERS.get(Path(path).suffix)
    if not files and re.search(r"[*?\[]", path):
        raise ConfigError("INPUT", name, f"matches no file; {_EXPECTED}")
    if not files and builder is not None:  # else the hub would be asked for it
        raise ConfigError("INPUT", name, f"there is no such file; {_EXPECTED}")
    options: dict[str, Any] = {"name": config or None, "split": split or None, "streaming": True}
    if files and builder is not None:
        path, options["data_files"] = builder, files
        options["split"] = split or "train"
    try:
        table = library.load_dataset(path, **options)
        if isinstance(table, dict):
            if len(table) != 1:
                expected = f"has the splits {', '.join(table)}: name one, {_EXPECTED}"
                raise ConfigError("INPUT", name, expected)
            table = next(iter(table.values()))
        return table.decode(enable=False)
    except ConfigError:
        raise
    except Exception as error:  # whatever its file systems and formats raise
        raise ConfigError(
            "INPUT", name, f"cannot be loaded ({_short(error)}); {_EXPECTED}"
        ) from error


def table_rows(
    table: Any, name: str, image_key: str, on_bytes: OnBytes | None = None
) -> Iterator[dict[str, Any] | RecordError]:
    """The rows as JSON values.

    The image in the column ``image_key``, or the only image there is, becomes that field; other
    images and other bytes are left out. Dates and decimals become text.

    Args:
        table: From :func:`open_table`.
        name: The input's, for messages.
        image_key: The field that gets the image.
        on_bytes: Gets what stands for a row: its fields as JSON, and name, length and
            CRC-32 of its images.

    Yields:
        Rows, or a RecordError for one whose image is not in it; cause ``image_not_inline``.

    Raises:
        RecordError: cause ``input_unreadable``.
    """
    root = Path(_parse(name)[0])
    folder = root if root.is_dir() else None
    record: dict[str, Any] | RecordError
    try:
        for index, row in enumerate(table):
            try:
                record = _record(row, image_key, index, folder)
            except RecordError as error:
                record = error
            if on_bytes is not None:
                on_bytes(_mark(record, image_key))
            yield record
    except Exception as error:  # whatever its file systems and formats raise
        raise RecordError("input_unreadable", f"{name}: {_short(error)}") from error


def _import_datasets(name: str) -> Any:
    before = os.environ.get("USE_TORCH")
    if "datasets" not in sys.modules and "torch" not in sys.modules:
        os.environ["USE_TORCH"] = "0"
    try:
        import datasets  # noqa: PLC0415 - an extra
    except ImportError as error:
        expected = "tables need datasets: pip install 'grpo_stream[tables]'"
        raise ConfigError("INPUT", name, expected) from error
    finally:
        if before is None:
            os.environ.pop("USE_TORCH", None)
        else:
            os.environ["USE_TORCH"] = before
    datasets.disable_progress_bars()
    return datasets


def _parse(name: str) -> tuple[str, str, str]:
    spec = name.removeprefix(PREFIX)
    path, _, rest = spec.partition(":")
    config, _, split = rest.partition(":")
    if not path or ":" in split:
        raise ConfigError("INPUT", name, f"must be written {_EXPECTED}")
    return path, config, split


def _record(
    row: Mapping[str, Any], image_key: str, index: int, folder: Path | None
) -> dict[str, Any]:
    images = {column: value for column, value in row.items() if _is_image(value)}
    record = {
        str(column): plain for column, value in row.items()
        if column not in images and (plain := _plain(value)) is not _DROPPED
    }  # fmt: skip
    column = image_key if image_key in images else None
    if column is None and image_key not in record and len(images) == 1:
        column = next(iter(images))
    if column is not None:
        value = images[column]
        made = [
            _inline(item, f"{column}_{index}", folder)
            for item in (value if isinstance(value, list) else [value])
        ]
        record[image_key] = made if isinstance(value, list) else made[0]
    return record


def _is_image(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_image(item) for item in value)
    if isinstance(value, bytes):
        return has_image_magic(value)
    return isinstance(value, dict) and value.keys() == {"bytes", "path"}


def _inline(value: Any, name: str, folder: Path | None) -> InlineImage | str:
    if isinstance(value, bytes):
        return InlineImage(name, value)
    path, data = value["path"], value["bytes"]
    if isinstance(data, bytes):
        return InlineImage(path if isinstance(path, str) and path else name, data)
    # Only of the folder that the user named: a table could name any file of this machine.
    if folder is not None and isinstance(path, str):
        file = Path(path)
        try:
            if file.resolve().is_relative_to(folder.resolve()):
                return InlineImage(
                    str(file.resolve().relative_to(folder.resolve())), file.read_bytes()
                )
        except (OSError, ValueError) as error:
            raise RecordError("image_not_read", f"{path!r}: {error}") from error
    if isinstance(path, str) and path and folder is None and not Path(path).is_absolute():
        return path  # in images-root, as the judge sees to it
    raise RecordError("image_not_inline", f"the row names {path!r} but does not hold the image")


_DROPPED = object()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        pairs = ((str(name), _plain(item)) for name, item in value.items())
        return {name: item for name, item in pairs if item is not _DROPPED}
    if isinstance(value, (list, tuple)):
        return [plain for item in value if (plain := _plain(item)) is not _DROPPED]
    if isinstance(value, (bytes, bytearray, memoryview, InlineImage)):
        return _DROPPED
    for name in ("tolist", "as_py"):  # numpy's and pyarrow's
        if hasattr(value, name):
            return _plain(getattr(value, name)())
    return str(value)


def _mark(record: dict[str, Any] | RecordError, image_key: str) -> bytes:
    if isinstance(record, RecordError):
        return f"{record}\n".encode("utf-8", "replace")
    value = record.get(image_key)
    images = value if isinstance(value, list) else [value]
    sums = [
        [image.name, len(image.data), crc32(image.data)]
        for image in images if isinstance(image, InlineImage)
    ]  # fmt: skip
    fields = record if not sums else {k: v for k, v in record.items() if k != image_key}
    return (json.dumps([fields, sums], default=str) + "\n").encode()


def _short(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
