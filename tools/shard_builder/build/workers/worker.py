"""What one process does: it judges a chunk's records, writes its shards and says what came out."""

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpo_stream.errors import ImageError, RecordError
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.image_files import image_name
from grpo_stream.records.keys import make_key
from grpo_stream.records.stored_image import ImageReader, PictureRules
from grpo_stream.records.validate import Verdict, judge
from grpo_stream.shards.images_field import is_text_only
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.sample import uses_schema_3
from grpo_stream.shards.tar import ShardWriter
from grpo_stream.storage.store import LocalStore, Store, open_store
from shard_builder.build.chunk_plan import Chunk, Place, ShardLimits, unpack_row
from shard_builder.build.chunk_result import (
    NUM_FIRST_REJECTS,
    ChunkResult,
    News,
    Reject,
    result_name,
)
from shard_builder.build.image_neighbours import GroupCount

NUM_FINISHING = 3
"""Shards that a process finishes at a time: one alone mostly waits for the bucket's answers."""

_Finished = tuple[ShardInfo, dict[str, str]]
_MAX_NAME_CHARS = 500
_SECONDS_BETWEEN_NEWS = 0.2


@dataclass(frozen=True)
class Job:
    """What every process of a build knows; it can be pickled."""

    out: str
    """Folder or URL; splits are in folders of their own below."""
    images_root: str
    pictures: PictureRules
    limits: ShardLimits
    state: str
    """Folder or URL where results are kept until the build ends."""
    spool: Path
    """A local folder where shards for a bucket wait for their upload."""
    dry_run: bool = False
    """Judge everything, write no shards."""
    by_image: bool = False
    """Samples of one image stay in one shard."""


class DoneChunk(NamedTuple):
    """A chunk whose shards and whose result are where they belong."""

    split: str
    number: int
    num_rejects: int


class Worker:
    """Builds chunks, one after the other.

    While a chunk's records are judged and packed, other threads finish the shards of the chunks
    before: fsync and rename, or the upload, and then the record of what was done.

    Args:
        job: What to do.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._state = open_store(job.state)
        self._stores: dict[str, Store] = {}
        self._reader = ImageReader(job.images_root, job.pictures)
        self._finisher = ThreadPoolExecutor(NUM_FINISHING, thread_name_prefix="finish-shards")

    def build(self, chunk: Chunk, tell: Callable[[News], None]) -> "Future[DoneChunk]":
        """Judges and packs a chunk; its shards are finished when the future is done.

        Args:
            chunk: The records.
            tell: Gets news a few times a second.
        """
        result = ChunkResult(chunk.split, chunk.number, len(chunk.records))
        packer = None
        if not self._job.dry_run:
            packer = _Packer(self._job, self._store(chunk.split), chunk, self._finisher)
        reporter = _Reporter(result, tell)
        try:
            self._reader.prefetch(self._paths(chunk))
            for row in chunk.records:
                place, form, record = unpack_row(row)
                self._take(place, chunk.rules[form], record, result, packer)
                reporter.count()
            finished = [] if packer is None else packer.close()
        except BaseException:
            if packer is not None:
                packer.discard()
            raise
        reporter.tell()

        def finish() -> DoneChunk:
            result.group_counts = [] if packer is None else packer.groups.counts
            for shard in finished:
                info, tags = shard.result()
                result.shards.append(info)
                result.tags |= tags
            self._state.write(result_name(chunk.split, chunk.number), result.to_json())
            return DoneChunk(chunk.split, chunk.number, len(result.rejects))

        return self._finisher.submit(finish)

    def close(self) -> None:
        """Waits for what is being finished."""
        self._finisher.shutdown()
        self._reader.close()

    def _store(self, split: str) -> Store:
        # Kept: a client for each chunk would cost 8 ms, and connections of its own.
        if split not in self._stores:
            self._stores[split] = split_store(self._job.out, split)
        return self._stores[split]

    def _take(
        self,
        place: Place,
        rules: Rules,
        record: Any,
        result: ChunkResult,
        packer: "_Packer | None",
    ) -> None:
        image = _image_name(record, rules.image_key)
        try:
            if isinstance(record, RecordError):
                raise record
            verdict = judge(record, make_key(place.position, image or ""), rules, self._reader.load)
        except (RecordError, ImageError) as error:
            result.rejects.append(Reject(place, image, error.cause, error.detail))
            return
        sample = verdict.sample
        result.notes.add(place, image or "", verdict)
        result.num_image_bytes += len(sample.image)
        result.num_multi_image += bool(sample.more_images)
        result.num_multi_box += len(sample.solutions) > 1
        result.num_schema_3 += uses_schema_3(sample.meta)
        result.num_text_only += is_text_only(sample.meta)
        if packer is not None:
            packer.add(verdict)

    def _paths(self, chunk: Chunk) -> Iterator[str]:
        for _, form, record in map(unpack_row, chunk.records):
            value = record.get(chunk.rules[form].image_key) if _is_object(record) else None
            if isinstance(value, str):
                yield value


@contextmanager
def rare_collections() -> Iterator[None]:
    """Makes Python look for cycles of garbage every 50,000 objects, not every 700.

    Records are trees, so the search finds next to nothing, for a tenth of a build's time.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Reporter:
    """Tells a few times a second what was done."""

    def __init__(self, result: ChunkResult, tell: Callable[[News], None]) -> None:
        self._result = result
        self._tell = tell
        self._num_records = 0
        self._told = News()
        self._next = time.monotonic() + _SECONDS_BETWEEN_NEWS

    def count(self) -> None:
        self._num_records += 1
        if time.monotonic() > self._next:
            self.tell()
            self._next = time.monotonic() + _SECONDS_BETWEEN_NEWS

    def tell(self) -> None:
        result, told = self._result, self._told
        now = News(self._num_records, result.num_image_bytes, len(result.rejects))
        self._tell(
            News(
                now.num_records - told.num_records,
                now.num_image_bytes - told.num_image_bytes,
                now.num_rejects - told.num_rejects,
                tuple(result.rejects[told.num_rejects :][:NUM_FIRST_REJECTS]),
            )
        )
        self._told = now


class _Packer:
    """Samples of one chunk in, shards out; see :func:`shard_name`."""

    def __init__(self, job: Job, store: Store, chunk: Chunk, finisher: ThreadPoolExecutor) -> None:
        self._store = store
        if isinstance(store, LocalStore):
            self._folder = store.folder
        else:
            self._folder = job.spool / chunk.split
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number = chunk.number
        self._limits = job.limits
        self._by_image = job.by_image
        self._finisher = finisher
        self.groups = GroupCount()
        self._writer: ShardWriter | None = None
        self._finished: list[Future[_Finished]] = []

    def add(self, verdict: Verdict) -> None:
        sample = verdict.sample
        num_bytes = len(sample.image) + sum(len(image) for _, image in sample.more_images)
        writer = self._writer
        is_full = writer is not None and writer.num_bytes + num_bytes > self._limits.max_bytes
        image = (len(sample.image), verdict.image_crc32)
        if is_full and not (self._by_image and self.groups.is_last(*image)):
            self._end()
        if self._writer is None:
            name = shard_name(self._number, len(self._finished))
            self._writer = ShardWriter(self._folder / name)
            self.groups.begin_shard()
        self.groups.add(*image)
        self._writer.add(sample, verdict.image_crc32, verdict.encoded_meta)

    def close(self) -> "list[Future[_Finished]]":
        self._end()
        return self._finished

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()

    def _end(self) -> None:
        if self._writer is not None:
            # One more shard may wait for its turn; more would fill the disk.
            if len(self._finished) > NUM_FINISHING:
                self._finished[-1 - NUM_FINISHING].result()
            self._finished.append(self._finisher.submit(self._writer.close_into, self._store))
            self._writer = None


def shard_name(number: int, part: int = 0) -> str:
    """File name of a chunk's shard; parts after the first are there when it became too large.

    Sorted by name, as others read them, they are in order: ``_`` comes after the dot.
    """
    return f"shard-{number:06d}_{part:02d}.tar" if part else f"shard-{number:06d}.tar"


def split_store(out: str, split: str) -> Store:
    """Where the shards of a split lie."""
    return open_store(f"{out.rstrip('/')}/{split}" if split else out)


def _image_name(record: Any, image_key: str) -> str | None:
    name = image_name(record.get(image_key)) if _is_object(record) else None
    return None if name is None else name[:_MAX_NAME_CHARS]


def _is_object(record: Any) -> bool:
    return isinstance(record, dict)
