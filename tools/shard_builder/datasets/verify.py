"""Re-reads a data set and believes nothing: hashes, indexes, images, boxes, keys, totals."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, GrpoStreamError, ImageError, StoreError
from grpo_stream.images import decode
from grpo_stream.records.evidence import Sampled
from grpo_stream.shards.images_field import is_text_only
from grpo_stream.shards.index import (
    PART_KINDS,
    IndexEntry,
    ShardIndex,
    energon_index,
    energon_index_name,
)
from grpo_stream.shards.manifest import Manifest, ShardInfo
from grpo_stream.shards.sample import Sample
from grpo_stream.shards.sample_runs import Run
from grpo_stream.storage.store import Store
from shard_builder.datasets.judge_reading import is_judged, judge_reading, places_of
from shard_builder.datasets.scan_shards import (
    KeyBook,
    OnProgress,
    Reread,
    first_repeated_key,
    is_inside,
    key_hash,
    map_in_order,
    no_progress,
)

_LISTS = (("rejects.jsonl", "num_rejects"), ("warnings.jsonl", "num_warnings"))


class VerifyError(GrpoStreamError):
    """The first thing found wrong; names the shard and, where there is one, the key."""


@dataclass(frozen=True)
class VerifyResult:
    """What was found sound."""

    num_samples: int
    num_bytes: int
    """Of all tars."""
    num_shards: int


@dataclass
class _ShardReport:
    hashes: list[int]
    """Of the keys up to the fault."""
    fault: GrpoStreamError | None
    places: Sampled
    num_multi: Counter[str]
    """Samples of several images, of several solutions and of no image, as the manifest's totals
    call them."""


def verify(
    store: Store,
    manifest: Manifest,
    *,
    workers: int = 1,
    part: tuple[int, int] = (1, 1),
    on_progress: OnProgress = no_progress,
) -> VerifyResult:
    """Reads every shard whole, one sample in memory for each worker.

    Checks size and SHA-256 of each tar, both of its indexes, sample by sample with all places,
    sizes and checksums, that each image decodes to the size that JSON and index give, that every
    solution is inside its image, and that keys are unique in the set (8 bytes a sample are
    held for that). Of tars that others made, that the boxes look like pixels. Then the manifest's
    totals, the number of lines in ``rejects.jsonl`` and ``warnings.jsonl`` and the causes of
    rejects, and that no other ``*.tar`` is there, where the store can list: readers that take
    ``*.tar`` would read it too. Other files, hidden ones among them, are not looked at. What lists
    and settings say in words has no checksum: no sample depends on it.

    A part reads every N-th shard. Keys are then compared within the part, and what is counted over
    all samples is left out: together the parts leave only that unlooked at.

    Args:
        store: The data set's folder.
        manifest: What :meth:`Manifest.load` gave.
        workers: Shards that are read at the same time, each in a thread; images are decoded
            outside Python's lock.
        part: ``(i, n)``: only the i-th of n parts, from 1.
        on_progress: Is told of every sample.

    Raises:
        VerifyError: the first fault in the data set's order, whatever the number of workers.
        StoreError: a shard is missing or cannot be read.
        ConfigError: ``workers`` is below 1.
    """
    if workers < 1:
        raise ConfigError("--workers", workers, "must be at least 1, for example 8")
    _check_totals(manifest, _sums(manifest))
    stop = threading.Event()

    def check(info: ShardInfo) -> _ShardReport:
        return _check_shard(store, info, stop.is_set, on_progress)

    number, num_parts = part
    shards = manifest.shards[number - 1 :: num_parts]
    book = KeyBook()
    sampled = Sampled()
    num_multi = Counter(num_multi_image=0, num_multi_box=0, num_text_only=0)
    with closing(map_in_order(check, shards, workers, stop)) as reports:
        for number, report in enumerate(reports, 1):
            book.add(report.hashes)
            num_multi.update(report.num_multi)
            for place in report.places.items():
                sampled.add(place)
            if report.fault is not None:
                _check_keys(store, shards[:number], book)
                raise report.fault
    _check_keys(store, shards, book)
    if num_parts == 1:
        _check_totals(manifest, num_multi)
    if not is_judged(manifest):
        _, fault = judge_reading(sampled, None)
        if fault is not None:
            raise VerifyError(f"{store.url}: {fault}")
    _check_lists(store, manifest)
    _check_others(store, manifest)
    num_samples = sum(info.num_samples for info in shards)
    return VerifyResult(num_samples, sum(info.num_bytes for info in shards), len(shards))


def _check_shard(
    store: Store, info: ShardInfo, should_stop: Callable[[], bool], on_progress: OnProgress
) -> _ShardReport:
    report = _ShardReport([], None, Sampled(), Counter())
    last_key = None
    try:
        for sample, num_bytes in _sound_samples(store, info, should_stop):
            last_key = sample.key
            for place in places_of(sample, len(report.hashes)):
                report.places.add(place)
            report.hashes.append(key_hash(last_key))
            report.num_multi["num_multi_image"] += bool(sample.more_images)
            report.num_multi["num_multi_box"] += len(sample.solutions) > 1
            report.num_multi["num_text_only"] += is_text_only(sample.meta)
            on_progress(1, num_bytes)
    except (VerifyError, StoreError) as error:
        report.fault = error
    except GrpoStreamError as error:
        after = "" if last_key is None else f" (the last sound sample is key={last_key!r})"
        report.fault = VerifyError(f"{error}{after}")
    return report


def _sound_samples(
    store: Store, info: ShardInfo, should_stop: Callable[[], bool]
) -> Iterator[tuple[Sample, int]]:
    index = ShardIndex.load(store, info)
    reread = Reread(store, info.name, should_stop)
    entries = (index[i] for i in range(len(index)))
    for number, (run, entry) in enumerate(zip_longest(reread.runs(), entries)):
        if should_stop():
            return
        if run is None or entry is None:
            found = str(number) if run is None else "more"
            counts = f"the index lists {len(index)} samples, the tar holds {found}"
            raise VerifyError(f"{info.name}: {counts}")
        where = f"{info.name}: key={run.sample.key!r}"
        _check_images(run.sample, entry, where)
        _check_entry(run, entry, where)
        _check_solutions(run.sample, where)
        yield run.sample, entry.num_bytes
    found_info = reread.info(len(index))
    if found_info.num_bytes != info.num_bytes:
        detail = f"{found_info.num_bytes} bytes, the manifest says {info.num_bytes}"
        raise VerifyError(f"{info.name}: {detail}")
    if found_info.sha256 != info.sha256:
        raise VerifyError(f"{info.name}: its SHA-256 is not the manifest's")
    name = energon_index_name(info.name)
    if store.read(name) != energon_index(index, reread.end):
        raise VerifyError(f"{name} does not list the samples of {info.name}")


def _check_images(sample: Sample, entry: IndexEntry, where: str) -> None:
    listed = {part.image: Size(part.width, part.height) for part in entry.parts if part.is_image}
    for number, ((_, image), size) in enumerate(zip(sample.images, sample.sizes, strict=True)):
        what = f"image {number}" if number else "image"
        try:
            height, width = decode(image).shape[:2]
        except ImageError as error:
            raise VerifyError(f"{where}: {what}: {error}") from error
        if not Size(width, height) == size == listed.get(number):
            sizes = f"{what} {width}x{height}, JSON {size}, index {listed.get(number)}"
            raise VerifyError(f"{where}: sizes differ: {sizes}")


def _check_entry(run: Run, entry: IndexEntry, where: str) -> None:
    found = run.index_entry()
    if found == entry:
        return
    for part, expected in zip(found.parts, entry.parts, strict=False):
        if part == expected._replace(crc32=part.crc32) and part != expected:
            kind = PART_KINDS[part.kind]
            raise VerifyError(f"{where}: the {kind}'s CRC-32 differs from the index")
    raise VerifyError(f"{where}: the index points elsewhere")


def _check_solutions(sample: Sample, where: str) -> None:
    for solution, image in zip(sample.solutions, sample.solution_images, strict=True):
        size = sample.sizes[image]
        if not is_inside(solution, size):
            detail = f"solution={solution} is outside {size.width}x{size.height}"
            raise VerifyError(f"{where}: {detail}")


def _check_keys(store: Store, shards: Sequence[ShardInfo], book: KeyBook) -> None:
    hashes = book.repeated()
    if not hashes:
        return
    found = first_repeated_key(store, (info.name for info in shards), hashes)
    if found is not None:
        key, again, first = found
        raise VerifyError(f"{again}: key={key!r} is not unique in the set: {first} has it too")


def _sums(manifest: Manifest) -> dict[str, int]:
    num_rejects = sum(manifest.rejects.values())
    return {
        "num_samples": manifest.num_samples,
        "num_bytes": sum(info.num_bytes for info in manifest.shards),
        "num_rejects": num_rejects,
        "num_records": manifest.num_samples + num_rejects,
    }


def _check_totals(manifest: Manifest, found: Mapping[str, int]) -> None:
    for name, expected in found.items():
        if manifest.totals.get(name, expected) != expected:
            detail = f"{name} is {manifest.totals[name]} in its totals, found are {expected}"
            raise VerifyError(f"manifest: {detail}")


def _check_lists(store: Store, manifest: Manifest) -> None:
    for name, total in _LISTS:
        expected = manifest.totals.get(total, 0)
        if not store.exists(name) and not expected:
            continue
        causes = _causes(store, name)
        if causes.total() != expected:
            detail = f"{causes.total()} lines, the manifest says {total}={expected}"
            raise VerifyError(f"{name}: {detail}")
        if total == "num_rejects" and causes != Counter(manifest.rejects):
            raise VerifyError(f"{name}: its causes are not those that the manifest counts")


def _causes(store: Store, name: str) -> Counter[str]:
    causes: Counter[str] = Counter()
    number = 0
    with store.open_stream(name) as lines:
        try:
            for line in lines:
                number += 1
                causes[json.loads(line)["cause"]] += 1
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise VerifyError(f"{name} line {number}: no object with a cause") from error
    return causes


def _check_others(store: Store, manifest: Manifest) -> None:
    try:
        names = store.list_names()
    except StoreError as error:
        if error.cause in ("unreadable", "forbidden"):
            return  # a web server, or a bucket that may be read but not listed
        raise
    strays = {name for name in names if name.endswith(".tar")}
    strays -= {info.name for info in manifest.shards}
    if strays:
        detail = "is there but the manifest does not name it: remove it, or index the folder"
        raise VerifyError(f"{min(strays)} {detail}")
