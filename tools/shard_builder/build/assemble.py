"""From the results of all chunks of a split to its lists and its manifest."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import grpo_stream
from grpo_stream.errors import StoreError
from grpo_stream.records.keys import make_key
from grpo_stream.shards.manifest import MANIFEST_VERSION, Manifest, ShardInfo
from grpo_stream.storage.store import Store
from shard_builder.build.chunk_result import ChunkResult, result_name
from shard_builder.build.duplicates import find_repeats
from shard_builder.build.output.reject_lists import REJECTS_NAME, WARNINGS_NAME, ListWriter

_NUM_READ_AHEAD = 16  # results in a bucket, each a request


@dataclass(frozen=True)
class Assembled:
    """A split whose chunks are all done."""

    shards: tuple[ShardInfo, ...]
    totals: dict[str, int]
    rejects: ListWriter
    warnings: ListWriter
    tags: dict[str, str]
    """ETag of each file of ``shards`` that was put into a bucket."""
    group_counts: list[int]
    """Images in a row, of each shard."""

    def manifest(self, settings: dict[str, Any]) -> Manifest:
        """The manifest, to be saved last."""
        return Manifest(
            version=MANIFEST_VERSION,
            shards=self.shards,
            settings=settings,
            builder_version=grpo_stream.__version__,
            totals=self.totals,
            rejects=dict(sorted(self.rejects.counts.items())),
            group_counts=tuple(self.group_counts) if "group_by" in settings else (),
        )


def read_result(state: Store, name: str) -> ChunkResult:
    """What came of a chunk.

    Raises:
        StoreError: it cannot be read, or is damaged (cause ``unreadable``).
    """
    data = state.read(name)
    try:
        return ChunkResult.from_json(data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        detail = f"{state.url}: {name} is damaged: run the same command again"
        raise StoreError("unreadable", detail) from error


def assemble(
    state: Store, split: str, num_chunks: int, input_names: Sequence[str], folder: Path
) -> Assembled:
    """Reads all results of a split, in order, and writes its lists.

    Args:
        state: Where the results are.
        split: Name of the split.
        num_chunks: Of this split.
        input_names: As the lists name the inputs.
        folder: For temporary files; is made.
    """
    folder.mkdir()
    rejects = ListWriter(REJECTS_NAME, input_names, folder)
    warnings = ListWriter(WARNINGS_NAME, input_names, folder)
    shards: list[ShardInfo] = []
    tags: dict[str, str] = {}
    group_counts: list[int] = []
    totals = dict.fromkeys(("num_records", "num_samples", "num_multi_image", "num_multi_box"), 0)

    def results() -> Iterator[ChunkResult]:
        return _results(state, split, num_chunks)

    for result, repeats in zip(results(), find_repeats(results, folder), strict=True):
        shards += result.shards
        tags |= result.tags
        group_counts += result.group_counts
        totals["num_records"] += result.num_records
        totals["num_samples"] += len(result.notes)
        totals["num_multi_image"] += result.num_multi_image
        totals["num_multi_box"] += result.num_multi_box
        for name in ("num_schema_3", "num_text_only"):
            if count := getattr(result, name):  # not named without any: as before, to the byte
                totals[name] = totals.get(name, 0) + count
        for reject in result.rejects:
            rejects.add(*reject)
        notes = result.notes
        own = [(number, (cause, detail)) for number, cause, detail in notes.warnings]
        # A sample's own warnings come first: the sort keeps the order of equals.
        for number, warning in sorted([*own, *repeats.items()], key=itemgetter(0)):
            place, image = notes.place(number), notes.images[number]
            key = make_key(place.position, image)
            warnings.add(place, image, *warning, key=key)
    totals["num_bytes"] = sum(shard.num_bytes for shard in shards)
    totals["num_rejects"] = rejects.counts.total()
    totals["num_warnings"] = warnings.counts.total()
    return Assembled(tuple(shards), totals, rejects, warnings, tags, group_counts)


def _results(state: Store, split: str, num_chunks: int) -> Iterator[ChunkResult]:
    names = (result_name(split, number) for number in range(num_chunks))
    ahead: list[Future[ChunkResult]] = []
    with ThreadPoolExecutor(_NUM_READ_AHEAD) as pool:
        for name in names:
            ahead.append(pool.submit(read_result, state, name))
            if len(ahead) == _NUM_READ_AHEAD:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()
