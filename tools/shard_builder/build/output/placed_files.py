"""Whether the files of a data set are the ones that were put there: size, ETag, check value."""

import hashlib
from collections.abc import Iterable, Mapping

from grpo_stream.errors import StoreError
from grpo_stream.shards.index import index_crc32, index_name, shard_files
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.storage.blobs import BlobInfo
from grpo_stream.storage.store import LocalStore, Store

_PIECE_BYTES = 2**20
_CRC_BYTES = 4


Listing = dict[str, BlobInfo]
"""Blobs by name."""


def listed(store: Store) -> Listing:
    """What is at the top of a store; nothing where there is no such folder."""
    try:
        return store.listing()
    except StoreError as error:
        if error.cause != "not_found":
            raise
        return {}


def first_missing(
    store: Store,
    shards: Iterable[ShardInfo],
    found: Mapping[str, BlobInfo],
    tags: Mapping[str, str],
) -> str | None:
    """The first file of ``shards`` that is not there, or is another than was put there.

    Args:
        store: Where they are.
        shards: What was put there.
        found: What :func:`listed` gave.
        tags: ETags that the puts gave, by name. An ETag that differs does not decide alone:
            providers may write one tag in two ways, so the content is then read.
    """
    for shard in shards:
        for name in shard_files(shard.name):
            there = found.get(name)
            if there is None or not there.num_bytes:
                return name
            if name == shard.name and there.num_bytes != shard.num_bytes:
                return name
            is_same = not (there.tag and tags.get(name)) or there.tag == tags[name]
            if not is_same and not _has_content(store, shard, name):
                return name
        if isinstance(store, LocalStore) and not _has_content(
            store, shard, index_name(shard.name), found[index_name(shard.name)].num_bytes
        ):
            return index_name(shard.name)
    return None


def _has_content(store: Store, shard: ShardInfo, name: str, num_bytes: int | None = None) -> bool:
    if name == index_name(shard.name):
        if shard.index_crc32 is None:
            return True
        if num_bytes is None:
            return index_crc32(store.read(name)) == shard.index_crc32
        tail = store.read_range(name, max(0, num_bytes - _CRC_BYTES), min(num_bytes, _CRC_BYTES))
        return len(tail) == _CRC_BYTES and index_crc32(tail) == shard.index_crc32
    if name == shard.name:
        sha256 = hashlib.sha256()
        with store.open_stream(name) as file:
            while data := file.read(_PIECE_BYTES):
                sha256.update(data)
        return sha256.hexdigest() == shard.sha256
    return True  # Energon's: another tool may have written it anew
