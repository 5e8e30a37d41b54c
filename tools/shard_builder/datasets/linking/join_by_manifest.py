"""``merge --by-manifest``: one data set of several, whose shards stay where they lie."""

import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

import grpo_stream
from grpo_stream.errors import ConfigError, ManifestError
from grpo_stream.shards.linked_sets import open_set, source_name, source_url
from grpo_stream.shards.manifest import MANIFEST_NAME, MANIFEST_VERSION, Manifest, ShardInfo
from grpo_stream.shards.sample import SCHEMA_VERSION
from grpo_stream.storage.joined_store import JoinedStore, joined_name
from grpo_stream.storage.store import LocalStore, Store, is_object_store, open_store
from grpo_stream.stream.sources import ShardSource
from shard_builder.build.output.output_lock import lock_output
from shard_builder.datasets.judge_reading import is_judged
from shard_builder.datasets.scan_shards import (
    KeyBook,
    OnProgress,
    key_hash,
    map_in_order,
    no_progress,
)

_NUM_SHARDS_AT_ONCE = 16
_LISTS = ("num_rejects", "num_warnings", "num_records")  # of lists that stay with their sets


class _Set(NamedTuple):
    url: str
    store: Store
    manifest: Manifest


def join_by_manifest(
    urls: Sequence[str],
    out: str,
    *,
    overwrite: bool = False,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Writes a manifest that names the shards of several data sets where they lie.

    Of each sample its tar header is read, for its key; of images nothing.

    Args:
        urls: Two data sets or more; sets that were joined so themselves are taken apart again.
        out: Folder or URL of the new manifest; a folder names folders relative to itself.
        overwrite: Replace a manifest there that is of another set.
        on_progress: Is told of every shard's samples.

    Raises:
        ConfigError: a setting cannot work, sets do not go together, or two samples have one key.
            Nothing was written.
        ManifestError, StoreError, ShardFormatError: a set cannot be read.
    """
    if len(urls) < 2:
        raise ConfigError("URL", list(urls), "merge takes two data sets or more")
    sets = [_Set(url, *open_set(url)) for url in urls]
    target = open_store(out)
    for one in sets:
        _check_set(one)
    _check_target(target, out, sets)
    manifest = _joined(target, sets)
    if _is_there(target, out, manifest, overwrite=overwrite):
        return manifest
    _check_keys(sets, on_progress)
    lock = lock_output(target, out)
    try:
        if _is_there(target, out, manifest, overwrite=overwrite):
            return manifest
        if overwrite:
            manifest.save(target)
        elif not target.write_new(MANIFEST_NAME, manifest.to_json()):
            raise ConfigError("--out", out, "has just been written by another process: look at it")
    finally:
        lock.close()
    return manifest


def _check_set(one: _Set) -> None:
    settings = one.manifest.settings
    if one.manifest.is_older:
        expected = "has indexes of an older version: run shard-builder index on it first"
        raise ConfigError("URL", one.url, expected)
    schema = settings.get("schema_version", SCHEMA_VERSION)
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        expected = f"has samples of schema {schema}, this program reads 1 to {SCHEMA_VERSION}"
        raise ConfigError("URL", one.url, expected)
    if not is_judged(one.manifest):
        expected = (
            "does not say in which frame its boxes are: run shard-builder index --overwrite on it, "
            "which looks at them"
        )
        raise ConfigError("URL", one.url, expected)


def _check_target(target: Store, out: str, sets: Sequence[_Set]) -> None:
    if out.startswith(("http://", "https://")):
        expected = "web servers take no uploads: give a folder, s3://, gs:// or az://"
        raise ConfigError("--out", out, expected)
    far = is_object_store(out)
    for url in {place for one in sets for place in _places(one)}:
        if far and not is_object_store(url):
            expected = f"would name a folder of this machine, {url}: give a folder, or upload that"
            raise ConfigError("--out", out, expected)
    if isinstance(target, LocalStore) and not target.folder.is_dir():
        names = []
    else:
        names = target.list_names()
    if any(name.endswith(".tar") for name in names):
        expected = "holds shards of its own: choose a folder without, such as one beside them"
        raise ConfigError("--out", out, expected)


def _places(one: _Set) -> list[str]:
    """Where the shards of a set lie."""
    if isinstance(one.store, JoinedStore):
        return [source_url(one.store.main, source) for source in one.manifest.sources]
    return [one.store.url]


def _joined(target: Store, sets: Sequence[_Set]) -> Manifest:
    sources: list[str] = []
    shards: list[ShardInfo] = []
    for one in sets:
        numbers = []
        for place in _places(one):
            name = source_name(target, open_store(place))
            if name not in sources:
                sources.append(name)
            numbers.append(sources.index(name))
        for info in one.manifest.shards:
            number, name = 0, info.name
            if one.manifest.sources:
                place_number, _, name = info.name.partition("/")
                number = int(place_number)
            fields = {**info.to_dict(), "name": joined_name(numbers[number], name)}
            shards.append(ShardInfo(**fields))
    _check_twice(shards, sources)
    manifests = [one.manifest for one in sets]
    has_groups = all(manifest.group_counts for manifest in manifests)
    groups = [count for manifest in manifests for count in manifest.group_counts]
    return Manifest(
        version=MANIFEST_VERSION,
        shards=tuple(shards),
        settings={
            "schema_version": SCHEMA_VERSION,
            "made_by": "merge --by-manifest",
            "sources": [
                {"digest": one.digest, "num_samples": one.num_samples, "settings": one.settings}
                for one in manifests
            ],
        },
        builder_version=grpo_stream.__version__,
        totals=_totals(manifests),
        group_counts=tuple(groups) if has_groups else (),
        sources=tuple(sources),
    )


def _check_twice(shards: Sequence[ShardInfo], sources: Sequence[str]) -> None:
    seen: set[str] = set()
    for info in shards:
        if info.name in seen:
            number, _, name = info.name.partition("/")
            expected = f"is joined twice ({name} among its shards): name each set once"
            raise ConfigError("URL", sources[int(number)], expected)
        seen.add(info.name)


def _totals(manifests: Sequence[Manifest]) -> dict[str, int]:
    names = {name for manifest in manifests for name in manifest.totals} - set(_LISTS)
    totals = {
        name: sum(manifest.totals.get(name, 0) for manifest in manifests)
        for name in sorted(names)
        # A number that one set does not state is not known of all.
        if all(name in manifest.totals or name in _OPTIONAL for manifest in manifests)
    }
    return totals | {
        "num_samples": sum(manifest.num_samples for manifest in manifests),
        "num_bytes": sum(int(manifest.byte_counts.sum()) for manifest in manifests),
    }


_OPTIONAL = ("num_schema_3", "num_text_only")  # written where there are some


def _is_there(target: Store, out: str, manifest: Manifest, *, overwrite: bool) -> bool:
    """Whether the same has been written already."""
    if not target.exists(MANIFEST_NAME):
        return False
    try:
        found: Manifest | None = Manifest.load(target)
    except ManifestError:
        found = None
    if found == manifest:
        return True
    if not overwrite:
        expected = "holds another data set: choose another folder or add --overwrite"
        raise ConfigError("--out", out, expected)
    return False


def _check_keys(sets: Sequence[_Set], on_progress: OnProgress) -> None:
    sources = [ShardSource(one.store, manifest=one.manifest) for one in sets]
    places = [
        (number, shard)
        for number, one in enumerate(sets)
        for shard in range(len(one.manifest.shards))
    ]

    def hashes(place: tuple[int, int]) -> Any:
        found = np.array([key_hash(key) for key in sources[place[0]].keys(place[1])], np.int64)
        on_progress(len(found), 0)
        return found

    book = KeyBook()
    found = map_in_order(hashes, places, _NUM_SHARDS_AT_ONCE, threading.Event())
    with closing(found):
        for some in found:
            book.add(some)
    repeated = book.repeated()
    seen: dict[str, str] = {}
    for holder in book.holders(repeated) if repeated else []:
        number, shard = places[holder]
        where = f"{sets[number].url}: {sets[number].manifest.shards[shard].name}"
        for key in sources[number].keys(shard):
            if key_hash(key) in repeated and key in seen:
                expected = (
                    f"has key {key!r} in {where}, which {seen[key]} has too: shards that stay as "
                    "they are keep their keys; merge without --by-manifest, with a --prefix for "
                    "each set, writes new ones"
                )
                raise ConfigError("URL", sets[number].url, expected)
            seen[key] = where
