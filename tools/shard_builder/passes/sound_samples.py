"""Samples of which nothing is believed: hashes, indexes, images, solutions."""

from collections.abc import Callable, Iterator
from itertools import zip_longest

from grpo_stream.boxes import Size
from grpo_stream.errors import GrpoStreamError, ImageError
from grpo_stream.images import decode
from grpo_stream.shards.index import (
    PART_KINDS,
    IndexEntry,
    ShardIndex,
    energon_index,
    energon_index_name,
)
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.sample import Sample
from grpo_stream.shards.sample_runs import Run
from grpo_stream.storage.store import Store
from shard_builder.datasets.scan_shards import Reread, is_inside


class VerifyError(GrpoStreamError):
    """The first thing found wrong; names the shard and, where there is one, the key."""


def sound_samples(
    store: Store, info: ShardInfo, should_stop: Callable[[], bool]
) -> Iterator[tuple[Sample, int]]:
    """The samples of a shard, each checked in all that it, its images and its index say.

    Args:
        store: The data set's folder.
        info: What the manifest says of the shard.
        should_stop: Asked before each sample.

    Yields:
        Each sample, and its bytes in the tar.

    Raises:
        VerifyError: something does not fit.
        StoreError, ShardFormatError: the shard cannot be read, or is no sound tar.
    """
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
