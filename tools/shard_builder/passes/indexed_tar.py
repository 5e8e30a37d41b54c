"""Tars that others made, read one by one, and the manifest of what was read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import grpo_stream
from grpo_stream.errors import ConfigError, ImageError, ShardFormatError
from grpo_stream.images import probe
from grpo_stream.records.evidence import Sampled
from grpo_stream.shards.images_field import is_text_only
from grpo_stream.shards.index import IndexEntry, ShardIndex, energon_index, index_crc32
from grpo_stream.shards.manifest import MANIFEST_VERSION, Manifest, ShardInfo
from grpo_stream.shards.sample import SCHEMA_VERSION, Sample, uses_schema_3
from grpo_stream.storage.store import Store
from shard_builder.datasets.judge_reading import places_of
from shard_builder.datasets.scan_shards import OnProgress, Reread, is_inside, key_hash
from shard_builder.passes.look_values import packed_hashes, packed_places

_MAP_FIELDS = (
    "prompt and solution must be in each sample's JSON, in pixels of its upright image: "
    "shard-builder build TAR... --format webdataset makes shards from tars with other fields, or "
    "other numbers (--coords)"
)


@dataclass(frozen=True)
class IndexedTar:
    """A tar that was read."""

    info: ShardInfo
    num_multi_image: int
    num_multi_box: int
    num_schema_3: int
    num_text_only: int
    places: list[list[Any]]
    """Of its boxes and points, as :func:`~.look_values.packed_places` gives them."""
    hashes: bytes
    """Of its keys, as :func:`~.look_values.packed_hashes` gives them."""
    index: bytes
    """Its index, and Energon's, as they are to be beside it."""
    energon: bytes

    def to_values(self) -> dict[str, Any]:
        """JSON values, and bytes."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"info": asdict(self.info)}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "IndexedTar":
        """What :meth:`to_values` was given."""
        return cls(**{**values, "info": ShardInfo(**values["info"])})

    def without_bytes(self) -> "IndexedTar":
        """What the manifest is made of."""
        return replace(self, places=[], hashes=b"", index=b"", energon=b"")


def read_tar(
    store: Store, name: str, should_stop: Callable[[], bool], on_progress: OnProgress
) -> IndexedTar:
    """Reads a tar whole and makes its indexes.

    Args:
        store: Where it lies.
        name: Its name.
        should_stop: Asked before each sample.
        on_progress: Is told of every sample.

    Raises:
        ShardFormatError: the first sample that cannot be used.
        StoreError: it cannot be read.
    """
    reread = Reread(store, name, should_stop)
    entries: list[IndexEntry] = []
    hashes: list[int] = []
    num_multi_image = num_multi_box = num_schema_3 = num_text_only = 0
    places = Sampled()
    try:
        for run in reread.runs():
            entry = run.index_entry()
            _judge(run.sample, f"{name}: key={run.sample.key!r}")
            for place in places_of(run.sample, len(entries)):
                places.add(place)
            entries.append(entry)
            hashes.append(key_hash(run.sample.key))
            num_multi_image += bool(run.sample.more_images)
            num_multi_box += len(run.sample.solutions) > 1
            num_schema_3 += uses_schema_3(run.sample.meta)
            num_text_only += is_text_only(run.sample.meta)
            on_progress(1, entry.num_bytes)
    except ShardFormatError as error:
        if error.cause in ("bad_json", "bad_meta"):
            raise ShardFormatError(error.cause, f"{error.detail}; {_MAP_FIELDS}") from error
        if error.cause == "missing_member":
            detail = f"{error.detail}; a sample's members must be side by side in the tar"
            raise ShardFormatError(error.cause, detail) from error
        raise
    if not entries:
        raise ShardFormatError("no_samples", f"{name} holds no sample")
    info = reread.info(len(entries))
    index = ShardIndex.from_entries(entries, reread.num_bytes, info.sha256)
    data = index.to_bytes()
    return IndexedTar(
        info=replace(info, index_crc32=index_crc32(data)),
        num_multi_image=num_multi_image,
        num_multi_box=num_multi_box,
        num_schema_3=num_schema_3,
        num_text_only=num_text_only,
        places=packed_places(places),
        hashes=packed_hashes(hashes),
        index=data,
        energon=energon_index(index, reread.end),
    )


def _judge(sample: Sample, where: str) -> None:
    for (_, image), size in zip(sample.images, sample.sizes, strict=True):
        try:
            found = probe(image).size
        except ImageError as error:
            raise ShardFormatError("bad_image", f"{where}: {error}") from error
        if found != size:
            detail = f"{where}: the image is {found}, its JSON says {size}"
            raise ShardFormatError("size_mismatch", f"{detail}; {_MAP_FIELDS}")
    for solution, number in zip(sample.solutions, sample.solution_images, strict=True):
        size = sample.sizes[number]
        if not is_inside(solution, size):
            detail = f"{where}: solution={solution} is outside {size.width}x{size.height}"
            raise ShardFormatError("bad_meta", f"{detail}; {_MAP_FIELDS}")


def manifest_of(
    indexed: Sequence[IndexedTar], readings: list[dict[str, object]] | None
) -> Manifest:
    """The manifest of tars that have none.

    Args:
        indexed: In the order of their names.
        readings: How their numbers are understood.
    """
    shards = tuple(one.info for one in indexed)
    num_schema_3 = sum(one.num_schema_3 for one in indexed)
    num_text_only = sum(one.num_text_only for one in indexed)
    return Manifest(
        version=MANIFEST_VERSION,
        shards=shards,
        settings={
            "schema_version": SCHEMA_VERSION,
            "made_by": "index",
            "readings": readings,
        },
        builder_version=grpo_stream.__version__,
        totals={
            "num_samples": sum(info.num_samples for info in shards),
            "num_bytes": sum(info.num_bytes for info in shards),
            "num_multi_image": sum(one.num_multi_image for one in indexed),
            "num_multi_box": sum(one.num_multi_box for one in indexed),
            **({"num_schema_3": num_schema_3} if num_schema_3 else {}),
            **({"num_text_only": num_text_only} if num_text_only else {}),
        },
    )


def same_manifest(present: Manifest, indexed: Sequence[IndexedTar]) -> Manifest:
    """The manifest that is there, with the check values of the indexes that were made anew.

    Raises:
        ConfigError: a tar is not what it says.
    """
    found = {one.info.name: one.info for one in indexed}
    listed = {info.name: info for info in present.shards}
    for name in sorted(found | listed):
        if _content(found.get(name)) != _content(listed.get(name)):
            expected = "is not what the manifest there says: --overwrite makes a new manifest"
            raise ConfigError("URL", name, expected)
    shards = tuple(found[info.name] for info in present.shards)
    return replace(present, version=MANIFEST_VERSION, shards=shards)


def _content(info: ShardInfo | None) -> ShardInfo | None:
    """A shard without the check value of its index, which is written anew."""
    return None if info is None else replace(info, index_crc32=None)
