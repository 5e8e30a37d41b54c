"""Samples copied from shard to shard as the bytes they are."""

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from grpo_stream.errors import ConfigError, ShardFormatError
from grpo_stream.shards.images_field import is_text_only
from grpo_stream.shards.index import (
    IndexEntry,
    ShardIndex,
)
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.sample import Sample, check_key, uses_schema_3
from grpo_stream.shards.tar import ShardWriter, parse_sample
from grpo_stream.shards.tar_headers import iter_members, make_header, padding
from grpo_stream.storage.store import LocalStore, Store
from shard_builder.build.chunk_result import ChunkResult
from shard_builder.datasets.read_json_members import skip


class RunBytes(NamedTuple):
    """A sample as it is in its shard."""

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
        done: The first shards, where an earlier run has finished them: their samples are counted
            and not written again.
        keep: Is given the number of every shard that is finished, and what came of it.
    """

    def __init__(
        self,
        store: Store,
        max_samples: int,
        max_bytes: int,
        done: Sequence[ChunkResult] = (),
        keep: Callable[[int, ChunkResult], object] = lambda *_: None,
    ) -> None:
        self.num_multi_image = self.num_multi_box = self.num_schema_3 = self.num_samples = 0
        self.num_text_only = 0
        self.shards: list[ShardInfo] = [info for result in done for info in result.shards]
        self.tags = {name: tag for result in done for name, tag in result.tags.items()}
        self.store = store
        self._store = store
        self._num_done = sum(info.num_samples for info in self.shards)
        self._keep = keep
        self._limits = max_samples, max_bytes
        self._stack = ExitStack()
        if isinstance(store, LocalStore):
            self._folder = store.folder
            self._folder.mkdir(parents=True, exist_ok=True)
        else:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._writer: ShardWriter | None = None

    def add(self, run: RunBytes) -> None:
        """Appends a sample."""
        self.num_samples += 1
        self.num_multi_image += len(run.sample.sizes) > 1
        self.num_multi_box += len(run.sample.solutions) > 1
        self.num_schema_3 += uses_schema_3(run.sample.meta)
        self.num_text_only += is_text_only(run.sample.meta)
        if self.num_samples <= self._num_done:
            return
        if self._writer is not None and self._is_full(self._writer, len(run.data)):
            self.end_shard()
        if self._writer is None:
            self._writer = ShardWriter(self._folder / f"shard-{len(self.shards):06d}.tar")
        self._writer.add_run(run.data, run.entry)

    def end_shard(self) -> None:
        """Finishes the shard in hand, if any; the next sample begins a new one."""
        if self._writer is None:
            return
        info, tags = self._writer.close_into(self._store)
        self._writer = None
        self.shards.append(info)
        self.tags |= tags
        self._keep(len(self.shards) - 1, ChunkResult("", 0, shards=[info], tags=tags))

    def totals(self) -> dict[str, int]:
        """Counts for the manifest."""
        return {
            "num_samples": self.num_samples,
            "num_bytes": sum(info.num_bytes for info in self.shards),
            "num_multi_image": self.num_multi_image,
            "num_multi_box": self.num_multi_box,
            **({"num_schema_3": self.num_schema_3} if self.num_schema_3 else {}),
            **({"num_text_only": self.num_text_only} if self.num_text_only else {}),
        }

    def close(self) -> None:
        """Drops an unfinished shard and the temporary folder."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None
        self._stack.close()

    def _is_full(self, writer: ShardWriter, num_bytes: int) -> bool:
        max_samples, max_bytes = self._limits
        return writer.num_samples >= max_samples or writer.num_bytes + num_bytes > max_bytes
