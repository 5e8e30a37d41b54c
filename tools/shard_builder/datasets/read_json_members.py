"""The JSON members of a data set, without its images: by place, or one after another."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from grpo_stream.boxes import Size
from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.index import PART_KINDS, IndexEntry, ShardIndex
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.sample import Sample, check_meta
from grpo_stream.storage.store import Store

_JSON = PART_KINDS.index("json")
_SKIP_BYTES = 2**20


def read_meta(store: Store, shard: str, entry: IndexEntry) -> dict[str, Any]:
    """The checked JSON of one sample, by one ranged read of its bytes alone.

    Raises:
        StoreError: the bytes cannot be had.
        ShardFormatError: cause ``bad_json`` or ``bad_meta``.
    """
    part = next(part for part in entry.parts if part.kind == _JSON)
    data = store.read_range(shard, part.offset, part.num_bytes)
    return _parse(data, f"{shard} at byte {part.offset}", entry.size)


def iter_metas(store: Store, info: ShardInfo, index: ShardIndex) -> Iterator[dict[str, Any]]:
    """The checked JSON of every sample of a shard, which is read forwards, once.

    The images between are skipped where the store can, which a folder can and a bucket cannot.

    Raises:
        StoreError: the shard cannot be read.
        ShardFormatError: causes ``truncated``, ``bad_json``, ``bad_meta``.
    """
    parts = index.parts[index.parts["kind"] == _JSON]
    position = 0
    with store.open_stream(info.name) as file:
        for (width, height), part in zip(index.sizes().tolist(), parts, strict=True):
            offset, num_bytes = int(part["offset"]), int(part["num_bytes"])
            where = f"{info.name} at byte {offset}"
            skip(file, offset - position)
            data = file.read(num_bytes)
            if len(data) < num_bytes:
                raise ShardFormatError("truncated", f"{where}: {len(data)} of {num_bytes} bytes")
            position = offset + num_bytes
            yield _parse(data, where, Size(width, height))


def as_sample(meta: dict[str, Any]) -> Sample:
    """A sample without key and with empty images, for what its JSON says."""
    sample = Sample("", b"", "", meta)
    return sample._replace(more_images=(("", b""),) * (len(sample.original_sizes) - 1))


def skip(file: BinaryIO, num_bytes: int) -> None:
    """Moves ``file`` forwards, without reading where it can seek."""
    if file.seekable():
        file.seek(num_bytes, 1)
        return
    while num_bytes > 0:
        data = file.read(min(num_bytes, _SKIP_BYTES))
        if not data:
            return
        num_bytes -= len(data)


def _parse(data: bytes, where: str, size: Size) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardFormatError("bad_json", f"{where}: {error}") from error
    if not isinstance(meta, dict):
        raise ShardFormatError("bad_json", f"{where}: a JSON object is expected")
    # JSON of tars that others made may leave the sides to the image; the index has them.
    sides = {"width": size.width, "height": size.height}
    sides |= {f"original_{name}": value for name, value in sides.items()}
    meta = sides | meta if size.width else meta
    check_meta(meta, where)
    return meta
