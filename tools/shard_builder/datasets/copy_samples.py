"""Samples copied from shard to shard as the bytes they are."""

import hashlib
import io
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from grpo_stream.errors import ConfigError, ShardFormatError
from grpo_stream.shards.index import (
    IndexEntry,
    ShardIndex,
    energon_index,
    energon_index_name,
    index_name,
)
from grpo_stream.shards.manifest import Manifest, ShardInfo
from grpo_stream.shards.sample import Sample, check_key
from grpo_stream.shards.tar import parse_sample
from grpo_stream.shards.tar_headers import END, iter_members, make_header, padding
from grpo_stream.storage.atomic_files import commit, temp_beside, write_atomic
from grpo_stream.storage.store import LocalStore, Store
from shard_builder.datasets.read_json_members import skip


class RunBytes(NamedTuple):
    """A sample as it lies in its shard."""

    data: bytes
    """Its members, headers and padding included."""
    entry: IndexEntry
    """Its line of the index."""
    sample: Sample


def read_runs(store: Store, info: ShardInfo) -> Iterator[RunBytes]:
    """The samples of a shard in order, checked against their CRC-32s; read forwards, once.

    Raises:
        StoreError: the shard or its index cannot be read.
        ShardFormatError: one is damaged.
    """
    index = ShardIndex.load(store, info)
    position = 0
    with store.open_stream(info.name) as file:
        for number in range(len(index)):
            entry = index[number]
            skip(file, entry.offset - position)
            data = file.read(entry.num_bytes)
            yield RunBytes(data, entry, parse_sample(data, info.name, entry))
            position = entry.offset + entry.num_bytes


def with_prefix(run: RunBytes, prefix: str) -> RunBytes:
    """The same sample with ``prefix`` before its key; contents stay, headers are new.

    Raises:
        ConfigError: the key would no longer be one.
    """
    key = prefix + run.sample.key
    try:
        check_key(key)
    except ShardFormatError as error:
        raise ConfigError("--prefix", prefix, f"{error.detail}") from error
    places = {part.offset: part for part in run.entry.parts}
    data = bytearray()
    parts = []
    members = iter_members(io.BytesIO(run.data), run.sample.key, run.entry.offset, is_whole=False)
    for member in members:
        part = places.get(member.data_offset)
        if part is None:
            continue
        data += make_header(prefix + member.name, len(member.data))
        parts.append(part._replace(offset=len(data)))
        data += member.data + padding(len(member.data))
    entry = IndexEntry(0, len(data), tuple(parts))
    old = run.sample
    sample = Sample(key, old.image, old.image_suffix, old.meta, old.more_images)
    return RunBytes(bytes(data), entry, sample)


class SetWriter:
    """Writes a data set's shards one after another, and its manifest last.

    Args:
        store: Where to; shards for a bucket are written to a temporary folder first.
        max_samples: Samples after which a new shard begins.
        max_bytes: Bytes before which a new shard begins; one huge sample may pass them.
    """

    def __init__(self, store: Store, max_samples: int, max_bytes: int) -> None:
        self.num_multi_image = self.num_multi_box = self.num_samples = 0
        self.shards: list[ShardInfo] = []
        self._store = store
        self._limits = max_samples, max_bytes
        self._stack = ExitStack()
        if isinstance(store, LocalStore):
            self._folder = store.folder
            self._folder.mkdir(parents=True, exist_ok=True)
        else:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._shard: _Shard | None = None

    def add(self, run: RunBytes) -> None:
        """Appends a sample."""
        if self._shard is not None and self._is_full(self._shard, len(run.data)):
            self.end_shard()
        if self._shard is None:
            self._shard = _Shard(self._folder / f"shard-{len(self.shards):06d}.tar")
        self._shard.add(run)
        self.num_samples += 1
        self.num_multi_image += len(run.sample.sizes) > 1
        self.num_multi_box += len(run.sample.solutions) > 1

    def end_shard(self) -> None:
        """Finishes the shard in hand, if any; the next sample begins a new one."""
        if self._shard is None:
            return
        info = self._shard.close()
        self._shard = None
        self.shards.append(info)
        if not isinstance(self._store, LocalStore):
            for name in (info.name, index_name(info.name), energon_index_name(info.name)):
                self._store.put_file(name, self._folder / name)
                (self._folder / name).unlink()

    def totals(self) -> dict[str, int]:
        """Counts for the manifest."""
        return {
            "num_samples": self.num_samples,
            "num_bytes": sum(info.num_bytes for info in self.shards),
            "num_multi_image": self.num_multi_image,
            "num_multi_box": self.num_multi_box,
        }

    def save(self, manifest: Manifest) -> Manifest:
        """Writes the manifest, after every shard."""
        manifest.save(self._store)
        return manifest

    def close(self) -> None:
        """Drops an unfinished shard and the temporary folder."""
        if self._shard is not None:
            self._shard.discard()
        self._stack.close()

    def _is_full(self, shard: "_Shard", num_bytes: int) -> bool:
        max_samples, max_bytes = self._limits
        return len(shard.entries) >= max_samples or shard.num_bytes + num_bytes > max_bytes


class _Shard:
    """One tar in the making, under a hidden name until :meth:`close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[IndexEntry] = []
        self.num_bytes = 0
        self._temp = temp_beside(path)
        self._file = self._temp.open("wb")
        self._sha256 = hashlib.sha256()

    def add(self, run: RunBytes) -> None:
        shift = self.num_bytes - run.entry.offset
        parts = (part._replace(offset=part.offset + shift) for part in run.entry.parts)
        self.entries.append(IndexEntry(self.num_bytes, len(run.data), tuple(parts)))
        self._write(run.data)

    def close(self) -> ShardInfo:
        end = self.num_bytes
        self._write(END)
        commit(self._file, self._temp, self.path)
        index = ShardIndex.from_entries(self.entries, self.num_bytes)
        name = self.path.name
        write_atomic(self.path.with_name(index_name(name)), index.to_bytes())
        energon = energon_index(index, end)
        write_atomic(self.path.with_name(energon_index_name(name)), energon)
        return ShardInfo(name, len(index), self.num_bytes, self._sha256.hexdigest())

    def discard(self) -> None:
        self._file.close()
        self._temp.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.num_bytes += len(data)
