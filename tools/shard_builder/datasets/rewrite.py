"""Data sets made of data sets: the first samples, several in one, one in several.

Samples keep their bytes: no image is decoded and no JSON written anew. Every sample is checked
against its CRC-32s on the way. One sample is held in memory at a time. A command that was killed
goes on when it is given again: what it reads is read again, finished shards are not written again.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from grpo_stream.errors import ConfigError
from grpo_stream.shards.index import IndexEntry, ShardIndex
from grpo_stream.shards.linked_sets import open_set
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import SCHEMA_VERSION
from grpo_stream.storage.store import Store
from shard_builder.build.chunk_plan import ShardLimits, Splits
from shard_builder.datasets.copy_samples import RunBytes, SetWriter, read_runs, with_prefix
from shard_builder.datasets.rewriting import rewriting
from shard_builder.datasets.scan_shards import (
    KeyBook,
    OnProgress,
    first_repeated_key,
    key_hash,
    no_progress,
)

_ALL = 2**62  # no limit: shards end where those of the source end
_Fingerprint = tuple[int, int]  # CRC-32 and length of an image file


def head(
    url: str,
    out: str,
    num_samples: int,
    *,
    overwrite: bool = False,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Copies the first samples of a data set; shards end where they ended.

    Args:
        url: The data set.
        out: Folder or URL of the new one.
        num_samples: At most this many.
        overwrite: Replace what is in ``out``.
        on_progress: Is told of every sample and its bytes.

    Raises:
        ConfigError: a setting cannot work; nothing was written.
        StoreError: something cannot be read or written.
        ShardFormatError: a shard is damaged; there is no manifest then.
    """
    if num_samples < 1:
        raise ConfigError("--num-samples", num_samples, "must be at least 1, for example 1000")
    store, manifest = open_set(url)
    made_by = _made_by({"command": "head", "num_samples": num_samples}, [manifest])
    with rewriting(out, ("",), made_by, [store], overwrite=overwrite) as work:
        if work.found is not None:
            return work.found[""]
        writer = work.writer("", _ALL, _ALL)
        for info in manifest.shards:
            if writer.num_samples == num_samples:
                break
            for run in read_runs(store, info):
                if writer.num_samples == num_samples:
                    break
                writer.add(run)
                on_progress(1, len(run.data))
            writer.end_shard()
        return work.finish()[""]


def merge(
    urls: Sequence[str],
    out: str,
    *,
    prefixes: Sequence[str] = (),
    overwrite: bool = False,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Makes one data set of several, shard after shard, in the order given.

    Args:
        urls: Two data sets or more.
        out: Folder or URL of the new one.
        prefixes: One for each of ``urls``, put before its keys; an empty one changes nothing.
            None at all where keys are unique as they are.
        overwrite: Replace what is in ``out``.
        on_progress: Is told of every sample and its bytes.

    Raises:
        ConfigError: a setting cannot work, or two samples have one key: the first such key and
            both shards are named, and there is no manifest. Finding out takes 8 bytes a sample
            and happens behind each of ``urls``.
        StoreError: something cannot be read or written.
        ShardFormatError: a shard is damaged; there is no manifest then.
    """
    if len(urls) < 2:
        raise ConfigError("URL", list(urls), "merge takes two data sets or more")
    if prefixes and len(prefixes) != len(urls):
        expected = f"must be given once for each of the {len(urls)} data sets, or not at all"
        raise ConfigError("--prefix", list(prefixes), expected)
    stores, manifests = zip(*map(open_set, urls), strict=True)
    made_by = _made_by({"command": "merge", "prefixes": list(prefixes)}, manifests)
    book = KeyBook()
    with rewriting(out, ("",), made_by, stores, overwrite=overwrite) as work:
        if work.found is not None:
            return work.found[""]
        writer = work.writer("", _ALL, _ALL)
        pairs = zip(stores, manifests, prefixes or [""] * len(urls), strict=True)
        for store, manifest, prefix in pairs:
            for info in manifest.shards:
                hashes = []
                for given in read_runs(store, info):
                    run = with_prefix(given, prefix) if prefix else given
                    hashes.append(key_hash(run.sample.key))
                    writer.add(run)
                    on_progress(1, len(run.data))
                writer.end_shard()
                book.add(hashes)
            _check_keys(writer, book)
        return work.finish()[""]


def split(
    url: str,
    out: str,
    splits: Splits,
    *,
    limits: ShardLimits | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = no_progress,
) -> dict[str, Manifest]:
    """Deals a data set's samples out by their images, in their order.

    An image's bytes alone decide, as in a build with the same shares: samples with byte-equal
    images are never parted. Samples of several images follow their first one, or, where they
    share images with others, all go together; to know that, the images of such samples are
    held in memory (some 200 bytes each).

    Args:
        url: The data set.
        out: Folder or URL; each split is a data set in a folder of its name below.
        splits: Names and shares.
        limits: When a shard is full; None for the usual.
        overwrite: Replace what is there.
        on_progress: Is told of every sample and its bytes.

    Returns:
        The manifest of each split.

    Raises:
        ConfigError: a setting cannot work, or a split got no sample.
        StoreError: something cannot be read or written.
        ShardFormatError: a shard is damaged; there is no manifest then.
    """
    limits = limits or ShardLimits()
    store, manifest = open_set(url)
    shares = [list(pair) for pair in splits.shares]
    kept = {"command": "split", "splits": shares, "shard_limits": asdict(limits)}
    made_by = _made_by(kept, [manifest])
    with rewriting(out, splits.names, made_by, [store], overwrite=overwrite) as work:
        if work.found is not None:
            return work.found
        families = _families(store, manifest)
        writers = {
            name: work.writer(name, limits.max_samples, limits.max_bytes) for name in splits.names
        }
        for info in manifest.shards:
            for run in read_runs(store, info):
                writers[_split_of(run, splits, families)].add(run)
                on_progress(1, len(run.data))
        for name, writer in writers.items():
            writer.end_shard()
            if writer.num_samples == 0:
                expected = "got none of the images: use a larger share or more data"
                raise ConfigError("--split", name, expected)
        return work.finish()


def _made_by(command: dict[str, Any], sources: Sequence[Manifest]) -> dict[str, Any]:
    """Everything that decides the content, for the manifest."""
    came_from = [
        {"digest": source.digest, "num_samples": source.num_samples, "settings": source.settings}
        for source in sources
    ]
    return {"schema_version": SCHEMA_VERSION, **command, "sources": came_from}


def _check_keys(writer: SetWriter, book: KeyBook) -> None:
    hashes = book.repeated()
    found = first_repeated_key(writer.store, [info.name for info in writer.shards], hashes)
    if found is None:
        return
    key, again, first = found
    expected = f"key {key!r} is in {first} and {again} of the merged set: give each set a prefix"
    raise ConfigError("--prefix", "", f"{expected}, as in --prefix a- --prefix b-")


def _families(store: Store, manifest: Manifest) -> dict[_Fingerprint, _Fingerprint]:
    """For the images of samples that have several: the least of all images they hang together with.

    Images hang together when a sample has both, or both hang together with a third.
    """
    parents: dict[_Fingerprint, _Fingerprint] = {}

    def root(image: _Fingerprint) -> _Fingerprint:
        while (parent := parents.setdefault(image, image)) != image:
            parents[image] = parents[parent]  # keeps chains short
            image = parent
        return image

    for info in manifest.shards:
        index = ShardIndex.load(store, info)
        owners = np.repeat(np.arange(len(index)), index.samples["num_parts"])
        for number in np.unique(owners[index.parts["image"] > 0]).tolist():
            first, *others = (root(image) for image in _fingerprints(index[number]))
            least = min(first, *others)
            for image in (first, *others):
                parents[image] = least
    return {image: root(image) for image in list(parents)}


def _split_of(run: RunBytes, splits: Splits, families: dict[_Fingerprint, _Fingerprint]) -> str:
    family = families.get(_fingerprints(run.entry)[0])
    return splits.of(bytes(run.sample.image) if family is None else repr(family).encode())


def _fingerprints(entry: IndexEntry) -> list[_Fingerprint]:
    """Of a sample's images, in their order."""
    images = sorted((part for part in entry.parts if part.is_image), key=lambda part: part.image)
    return [(part.crc32, part.num_bytes) for part in images]
