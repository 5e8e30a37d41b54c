"""Indexes and a manifest for tars that others made, so that they can be streamed as they are."""

import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import grpo_stream
from grpo_stream.errors import ConfigError, ImageError, ManifestError, ShardFormatError
from grpo_stream.images import probe
from grpo_stream.records.evidence import Sampled
from grpo_stream.shards.images_field import is_text_only
from grpo_stream.shards.index import (
    IndexEntry,
    ShardIndex,
    shard_files,
    write_indexes,
)
from grpo_stream.shards.manifest import MANIFEST_NAME, MANIFEST_VERSION, Manifest, ShardInfo
from grpo_stream.shards.sample import SCHEMA_VERSION, Sample, uses_schema_3
from grpo_stream.storage.store import LocalStore, Store, open_store
from shard_builder.build.output.kept_results import SETTINGS_NAME
from shard_builder.datasets.judge_reading import judge_reading, places_of
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

_MAP_FIELDS = (
    "prompt and solution must be in each sample's JSON, in pixels of its upright image: "
    "shard-builder build TAR... --format webdataset makes shards from tars with other fields, or "
    "other numbers (--coords)"
)


@dataclass(frozen=True)
class _Indexed:
    """A tar that was read."""

    info: ShardInfo
    hashes: list[int]
    num_multi_image: int
    num_multi_box: int
    num_schema_3: int
    num_text_only: int
    places: Sampled


def index_tars(
    url: str | os.PathLike[str],
    *,
    workers: int = 1,
    overwrite: bool = False,
    accept_reading: str | None = None,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Reads all tars at the top of a folder or bucket and writes what streaming needs.

    Beside every ``X.tar`` lie then ``X.tar.index`` and Energon's ``X.tar.idx``; ``manifest.json``
    is written last. Nothing is written before all tars are read, and the tars stay as they are.
    Where a manifest is there already, the tars must be the ones that it names; the indexes are
    written anew, from whatever version they were, and the manifest gets their check values: its
    digest, to which saved positions are bound, stays.

    Every sample needs a JSON member with ``prompt`` and ``solution``, and an image unless that says
    ``"images": []``; missing widths and heights are taken from the image. Images are judged by
    their headers. Other members stay what they are. Shards are ordered by name.

    Args:
        url: Folder, ``s3://``, ... of the tars.
        workers: Tars that are read at the same time, each in a thread.
        overwrite: Write a new manifest whatever the one that is there says.
        accept_reading: ``xyxy-pixels``: boxes are pixels though they look like something else.
        on_progress: Is told of every sample.

    Raises:
        ConfigError: no tar is there, a build is unfinished there, or a tar is not what the
            manifest there says.
        ShardFormatError: the first sample, in the order of names, that cannot be used.
        StoreError: something cannot be read or written.
    """
    store = open_store(url)
    _check_place(store, overwrite=overwrite)
    if workers < 1:
        raise ConfigError("--workers", workers, "must be at least 1, for example 8")
    names = _tar_names(store)
    present = None if overwrite else _present_manifest(store)
    stop = threading.Event()
    book = KeyBook()
    indexed: list[_Indexed] = []
    with tempfile.TemporaryDirectory(prefix="shard-index-") as spool:

        def read(name: str) -> _Indexed:
            return _read_tar(store, name, Path(spool), stop.is_set, on_progress)

        with closing(map_in_order(read, names, workers, stop)) as results:
            try:
                for one in results:
                    book.add(one.hashes)
                    indexed.append(one)
                    one.hashes.clear()
            finally:  # a key that was repeated before a fault comes first
                _check_keys(store, names[: len(indexed)], book)
        reading = _reading(store, indexed, accept_reading) if present is None else None
        manifest = _manifest(indexed, reading) if present is None else _same(present, indexed)
        for name in names:
            for part in shard_files(name)[1:]:
                store.put_file(part, Path(spool, part))
    if manifest != present:
        manifest.save(store)
    return manifest


def _check_place(store: Store, *, overwrite: bool) -> None:
    if isinstance(store, LocalStore):
        if not store.folder.is_dir():
            raise ConfigError("URL", store.url, "must be a folder or bucket with .tar files")
    elif store.url.startswith(("http://", "https://")):
        expected = "web servers take no uploads: give a folder, s3://, gs:// or az://"
        raise ConfigError("URL", store.url, expected)
    if not overwrite and store.exists(SETTINGS_NAME):
        expected = (
            "holds an unfinished build: give its command again to finish it, or add --overwrite "
            "to index the shards that are there"
        )
        raise ConfigError("URL", store.url, expected)


def _tar_names(store: Store) -> list[str]:
    names = store.list_names()
    tars = [name for name in names if name.endswith(".tar")]
    if tars:
        return tars
    below = sorted({name.rpartition("/")[0] for name in store.walk() if name.endswith(".tar")})
    if below:
        expected = f"has no .tar itself: give one of the folders in it, for example {below[0]}"
    elif any(name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2")) for name in names):
        expected = "has compressed tars only, which cannot be read by ranges: decompress them"
    else:
        expected = "must be a folder or bucket with .tar files"
    raise ConfigError("URL", store.url, expected)


def _present_manifest(store: Store) -> Manifest | None:
    if not store.exists(MANIFEST_NAME):
        return None
    try:
        return Manifest.load(store)
    except ManifestError as error:
        raise ConfigError("URL", store.url, f"{error}; --overwrite replaces it") from error


def _read_tar(
    store: Store,
    name: str,
    spool: Path,
    should_stop: Callable[[], bool],
    on_progress: OnProgress,
) -> _Indexed:
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
    info = replace(info, index_crc32=write_indexes(spool / name, index, reread.end))
    counts = num_multi_image, num_multi_box, num_schema_3, num_text_only
    return _Indexed(info, hashes, *counts, places)


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


def _check_keys(store: Store, names: list[str], book: KeyBook) -> None:
    hashes = book.repeated()
    found = first_repeated_key(store, names, hashes) if hashes else None
    if found is not None:
        key, again, first = found
        raise ShardFormatError("duplicate_key", f"{again}: key={key!r} is in {first} too")


def _reading(
    store: Store, indexed: list[_Indexed], accepted: str | None
) -> list[dict[str, object]]:
    sampled = Sampled()
    for one in indexed:
        for place in one.places.items():
            sampled.add(place)
    decision, fault = judge_reading(sampled, accepted)
    if fault is not None:
        raise ConfigError("URL", store.url, fault)
    return [decision.facts()]


def _manifest(indexed: list[_Indexed], readings: list[dict[str, object]] | None) -> Manifest:
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


def _same(present: Manifest, indexed: list[_Indexed]) -> Manifest:
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
