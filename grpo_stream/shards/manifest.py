"""The list of a data set's shards. Written last: no manifest, no data set."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_stream.errors import ManifestError, StoreError
from grpo_stream.shards.shard_table import ShardInfo, ShardTable, TableReader
from grpo_stream.storage.store import Store

__all__ = ["MANIFEST_NAME", "MANIFEST_VERSION", "Manifest", "ShardInfo"]

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 2
_GZIP = b"\x1f\x8b"
_MAX_WORDS = 300
_AS_WEIGHT = re.compile(r"(\w+://.+)=([0-9./]+)")  # a URL that ends as if a weight were meant
_READ_VERSIONS = (1, 2)
_DIGEST_VERSION = 1  # of the lines that the digest is over, so equal content keeps its name


@dataclass(frozen=True)
class Manifest:
    """A data set: its shards in order, and how it came about."""

    version: int
    """:data:`MANIFEST_VERSION` at the time of writing."""
    shards: Sequence[ShardInfo]
    """In the order that the stream's arithmetic uses; a million of them cost little memory."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Build settings that decided the content; no machine paths."""
    builder_version: str = ""
    totals: dict[str, int] = field(default_factory=dict)
    """Counts over the set, for people: ``num_samples``, ``num_bytes``, ``num_warnings``, ..."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Rejected records by cause."""
    group_counts: tuple[int, ...] = ()
    """Images in each shard, where the samples of an image are neighbours; else empty."""
    sources: tuple[str, ...] = ()
    """Where the shards lie that are not beside it (:mod:`grpo_stream.shards.linked_sets`)."""

    @property
    def is_older(self) -> bool:
        """Whether nothing in it ties the indexes to it: that came with version 2."""
        return self.version < MANIFEST_VERSION

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.sample_counts.sum())

    @cached_property
    def sample_counts(self) -> NDArray[np.int64]:
        """Samples of each shard: int64, shape (num_shards,)."""
        if isinstance(self.shards, ShardTable):
            return self.shards.num_samples
        return np.array([shard.num_samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def byte_counts(self) -> NDArray[np.int64]:
        """Bytes of each shard: int64, shape (num_shards,)."""
        if isinstance(self.shards, ShardTable):
            return self.shards.num_bytes
        return np.array([shard.num_bytes for shard in self.shards], dtype=np.int64)

    def sizes(self) -> Mapping[str, int]:
        """Bytes of each shard, by name."""
        if isinstance(self.shards, ShardTable):
            return self.shards.sizes()
        return {shard.name: shard.num_bytes for shard in self.shards}

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over, in order, each shard's name, num_samples and sha256.

        Two copies of a data set have the same digest wherever they lie and however they were
        built; any change of content or order changes it.
        """
        digest = hashlib.sha256(f"manifest {_DIGEST_VERSION}\n".encode())
        if isinstance(self.shards, ShardTable):
            for lines in self.shards.digest_lines():
                digest.update(lines)
            return digest.hexdigest()
        for shard in self.shards:
            line = json.dumps([shard.name, shard.num_samples, shard.sha256])
            digest.update(f"{line}\n".encode())
        return digest.hexdigest()

    def to_json(self) -> bytes:
        """UTF-8 JSON, one shard a line, the same bytes for the same values."""
        rest = {
            "version": self.version,
            "digest": self.digest,
            "builder_version": self.builder_version,
            "totals": self.totals,
            "rejects": self.rejects,
            "settings": self.settings,
            **({"group_counts": self.group_counts} if self.group_counts else {}),
            **({"sources": self.sources} if self.sources else {}),
        }
        lines = [f" {json.dumps(k)}: {json.dumps(v, sort_keys=True)},\n" for k, v in rest.items()]
        shards = ",\n".join(f"  {json.dumps(shard.to_dict())}" for shard in self.shards)
        return ("{\n" + "".join(lines) + f' "shards": [\n{shards}\n ]\n}}\n').encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Reads what :meth:`to_json` wrote.

        Raises:
            ManifestError: not JSON, of another version, with missing or wrong fields, with two
                shards of one name, or with a digest that does not fit the shards.
        """
        try:
            raw, table = _parse(data)
            version = raw["version"]
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            if data[:2] == _GZIP:
                detail = "it is compressed: it must be stored, and sent, as plain JSON"
            else:
                detail = f"{type(error).__name__}: {str(error)[:_MAX_WORDS]}"
            raise ManifestError(f"{MANIFEST_NAME} is no manifest: {detail}") from error
        if version not in _READ_VERSIONS:
            raise ManifestError(
                f"{MANIFEST_NAME} has version {version!r}, this program reads versions 1 to "
                f"{MANIFEST_VERSION}: rebuild the data set or use the program that built it"
            )
        try:
            manifest = cls(
                version=version,
                shards=tuple(map(_shard_info, raw["shards"])) if table is None else table,
                settings=dict(raw["settings"]),
                builder_version=str(raw["builder_version"]),
                totals=dict(raw["totals"]),
                rejects=dict(raw["rejects"]),
                group_counts=_group_counts(raw.get("group_counts", []), len(raw["shards"])),
                sources=_sources(raw.get("sources", [])),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ManifestError(
                f"{MANIFEST_NAME}: missing or wrong field: {str(error)[:_MAX_WORDS]}"
            ) from error
        if _has_twice(manifest.shards):
            raise ManifestError(f"{MANIFEST_NAME} names a shard twice")
        if raw.get("digest", manifest.digest) != manifest.digest:
            raise ManifestError(f"{MANIFEST_NAME}: its digest does not fit its shards")
        return manifest

    @classmethod
    def load(cls, store: Store) -> "Manifest":
        """Reads the manifest of the data set in ``store``.

        Raises:
            ManifestError: there is none, or :meth:`from_json` refuses it.
            StoreError: the store cannot be read.
        """
        return cls.from_json(cls.fetch(store))

    @staticmethod
    def fetch(store: Store) -> bytes:
        """The manifest of the data set in ``store`` as it is stored; for :meth:`from_json`.

        Raises:
            ManifestError: there is none.
            StoreError: the store cannot be read.
        """
        try:
            return store.read(MANIFEST_NAME)  # not ``exists`` first: that is one more request
        except StoreError as error:
            if error.cause != "not_found":
                raise
            raise ManifestError(
                f"{store.url}: no manifest, no data set: run shard-builder build (or, on tars that "
                f"others made, index) and give the folder that holds {MANIFEST_NAME}"
                f"{_weight_hint(store.url)}"
            ) from error

    def save(self, store: Store) -> None:
        """Writes the manifest; the last act of a build, after every shard and index."""
        store.write(MANIFEST_NAME, self.to_json())


def _weight_hint(url: str) -> str:
    found = _AS_WEIGHT.fullmatch(url)
    return "" if found is None else f"; if {found[2]} is its weight, write {found[2]}:{found[1]}"


def _parse(data: bytes) -> tuple[Any, ShardTable | None]:
    """The JSON, and its shards as a table; without one where a shard is not of the usual kind."""
    reader = TableReader()
    raw = json.loads(data, object_hook=reader)
    table = reader.table(raw["shards"]) if isinstance(raw, dict) and "shards" in raw else None
    return (raw, table) if table is not None else (json.loads(data), None)


def _group_counts(raw: Any, num_shards: int) -> tuple[int, ...]:
    counts = tuple(raw)
    is_sound = all(type(count) is int and count > 0 for count in counts)
    if not is_sound or len(counts) not in (0, num_shards):
        raise ValueError(f"group_counts: not a number for each of {num_shards} shards")
    return counts


def _sources(raw: Any) -> tuple[str, ...]:
    sources = tuple(raw) if isinstance(raw, list) else (None,)
    if not all(isinstance(source, str) and source for source in sources):
        raise ValueError("sources: not a list of URLs")
    return sources


def _has_twice(shards: Sequence[ShardInfo]) -> bool:
    if isinstance(shards, ShardTable):
        return shards.has_a_name_twice()
    return len({shard.name for shard in shards}) < len(shards)


def _shard_info(raw: dict[str, Any]) -> ShardInfo:
    numbers = {"num_samples": raw["num_samples"], "num_bytes": raw["num_bytes"]}
    if raw.get("index_crc32") is not None:
        numbers["index_crc32"] = raw["index_crc32"]
    info = ShardInfo(name=raw["name"], sha256=raw["sha256"], **numbers)
    for name, value in numbers.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"{name}={value!r}")
    for name in ("name", "sha256"):
        value = getattr(info, name)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name}={value!r}")
    return info
