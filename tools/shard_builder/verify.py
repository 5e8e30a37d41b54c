"""Re-reads a data set and believes nothing: hashes, index, checksums, images, boxes."""

import hashlib
import io
from collections.abc import Iterator
from itertools import zip_longest

from grpo_stream.boxes import Box, Size
from grpo_stream.errors import GrpoStreamError, ImageError, ShardFormatError
from grpo_stream.images import decode
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest, ShardInfo
from grpo_stream.shards.sample import Sample
from grpo_stream.shards.store import Store
from grpo_stream.shards.tar import iter_samples, parse_sample


class VerifyError(GrpoStreamError):
    """The first thing found wrong; names the shard and, where there is one, the key."""


def verify(store: Store, manifest: Manifest) -> Iterator[Sample]:
    """Reads every shard whole, one in memory at a time, and yields each sample that is sound.

    Checks size and SHA-256 of each tar, the index against the tar, sample by sample, checksums,
    keys (unique in the set, upper and lower case alike), that each image decodes to the size
    that JSON and index give, and that the solution lies inside.

    Raises:
        VerifyError: the first fault.
        StoreError: a file is missing or cannot be read.
    """
    keys: set[str] = set()
    for info in manifest.shards:
        data = store.read(info.name)
        try:
            index = ShardIndex.load(store, info)
            _check_shard(data, info)
            samples = iter_samples(io.BytesIO(data), info.name)
            for number, (sample, entry) in enumerate(
                zip_longest(samples, (index[i] for i in range(len(index))))
            ):
                if sample is None or entry is None:
                    counts = f"the index tells of {len(index)} samples, the tar of "
                    counts += str(number) if sample is None else "more"
                    raise VerifyError(f"{info.name}: {counts}")
                run = data[entry.offset : entry.offset + entry.num_bytes]
                if parse_sample(run, info.name, entry) != sample:
                    raise VerifyError(
                        f"{info.name}: key={sample.key!r}: the index points elsewhere"
                    )
                if sample.key.lower() in keys:
                    raise VerifyError(f"{info.name}: key={sample.key!r} is not unique in the set")
                keys.add(sample.key.lower())
                _check_sample(sample, entry.size, info.name)
                yield sample
        except ShardFormatError as error:
            raise VerifyError(str(error)) from error


def _check_shard(data: bytes, info: ShardInfo) -> None:
    if len(data) != info.num_bytes:
        found = f"{len(data)} bytes, the manifest says {info.num_bytes}"
        raise VerifyError(f"{info.name}: {found}")
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise VerifyError(f"{info.name}: its SHA-256 is not the manifest's")


def _check_sample(sample: Sample, size: Size, shard: str) -> None:
    where = f"{shard}: key={sample.key!r}"
    try:
        height, width = decode(sample.image).shape[:2]
    except ImageError as error:
        raise VerifyError(f"{where}: {error}") from error
    if not Size(width, height) == sample.size == size:
        sizes = f"image {width}x{height}, JSON {sample.size}, index {size}"
        raise VerifyError(f"{where}: sizes differ: {sizes}")
    x1, y1 = sample.solution[:2]
    if len(sample.solution) == 2:
        is_inside = 0 <= x1 < width and 0 <= y1 < height
    else:
        x2, y2 = sample.solution[2:]
        box = Box(x1, y1, x2, y2)
        is_inside = box.is_valid and box.clipped(size) == box
    if not is_inside:
        raise VerifyError(f"{where}: solution={sample.solution} is outside {width}x{height}")
