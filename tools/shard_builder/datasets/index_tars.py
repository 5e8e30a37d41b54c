"""Indexes and a manifest for tars that others made, so that they can be streamed as they are."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from grpo_stream.errors import ConfigError, ManifestError, ShardFormatError
from grpo_stream.records.evidence import Sampled
from grpo_stream.shards.index import shard_files
from grpo_stream.shards.manifest import MANIFEST_NAME, Manifest
from grpo_stream.storage.store import LocalStore, Store, open_store
from shard_builder.build.output.kept_results import SETTINGS_NAME
from shard_builder.datasets.judge_reading import judge_reading
from shard_builder.datasets.scan_shards import (
    KeyBook,
    OnProgress,
    first_repeated_key,
    no_progress,
)
from shard_builder.passes.indexed_tar import IndexedTar, manifest_of, read_tar, same_manifest
from shard_builder.passes.look_values import unpacked_hashes, unpacked_places
from shard_builder.passes.run_pass import PassSettings, run_pass
from shard_builder.passes.shard_pass import ShardPass


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
    one = IndexPass(open_store(url), overwrite=overwrite, accept_reading=accept_reading)
    manifest = run_pass(one, PassSettings(workers), on_progress)
    assert isinstance(manifest, Manifest)  # noqa: S101 - no part was asked for
    return manifest


class IndexPass(ShardPass[Manifest]):
    """:func:`index_tars` as a pass, of which parts may be done elsewhere.

    Raises:
        ConfigError: no tar is there, or a build is unfinished there.
    """

    command = "index"

    def __init__(self, store: Store, *, overwrite: bool, accept_reading: str | None) -> None:
        super().__init__(store, {"overwrite": overwrite, "accept_reading": accept_reading})
        _check_place(store, overwrite=overwrite)
        judge_reading(Sampled(), accept_reading)  # refuses what is no reading
        self._names = _tar_names(store)
        self._present = None if overwrite else _present_manifest(store)
        self._accepted = accept_reading

    @classmethod
    def opened(cls, url: str, settings: dict[str, Any]) -> "IndexPass":
        """See :meth:`ShardPass.opened`."""
        return cls(open_store(url), **settings)

    @property
    def num_shards(self) -> int:
        """See :meth:`ShardPass.num_shards`."""
        return len(self._names)

    def set_facts(self) -> dict[str, Any]:
        """See :meth:`ShardPass.set_facts`: the tars' names and sizes."""
        sizes = self.store.sizes()
        facts = [[name, sizes.get(name)] for name in self._names]
        return {"tars_sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest()}

    def counts_of(self, number: int, finding: IndexedTar) -> tuple[int, int]:
        """See :meth:`ShardPass.counts_of`."""
        del number
        return finding.info.num_samples, finding.info.num_bytes

    def look(
        self, number: int, should_stop: Callable[[], bool], on_progress: OnProgress
    ) -> IndexedTar:
        """See :meth:`ShardPass.look`: a tar's line in the manifest and its indexes."""
        return read_tar(self.store, self._names[number], should_stop, on_progress)

    def conclude(self, findings: Iterable[IndexedTar]) -> Manifest:
        """See :meth:`ShardPass.conclude`: writes indexes and manifest, once all is judged."""
        book = KeyBook()
        sampled = Sampled()
        indexed: list[IndexedTar] = []
        with tempfile.TemporaryDirectory(prefix="shard-index-") as spool:
            try:
                for one in findings:
                    book.add(unpacked_hashes(one.hashes))
                    for place in unpacked_places(one.places):
                        sampled.add(place)
                    _, *parts = shard_files(one.info.name)
                    for part, data in zip(parts, (one.index, one.energon), strict=True):
                        Path(spool, part).write_bytes(data)
                    indexed.append(one.without_bytes())
            finally:  # a key that was repeated before a fault comes first
                self._check_keys(book)
            if self._present is None:
                manifest = manifest_of(indexed, self._reading(sampled))
            else:
                manifest = same_manifest(self._present, indexed)
            for name in self._names:
                for part in shard_files(name)[1:]:
                    self.store.put_file(part, Path(spool, part))
        if manifest != self._present:
            manifest.save(self.store)
        return manifest

    def to_values(self, finding: IndexedTar) -> dict[str, Any]:
        """See :meth:`ShardPass.to_values`."""
        return finding.to_values()

    def from_values(self, values: dict[str, Any]) -> IndexedTar:
        """See :meth:`ShardPass.from_values`."""
        return IndexedTar.from_values(values)

    def result_to_values(self, result: Manifest) -> dict[str, Any]:
        """See :meth:`ShardPass.result_to_values`: the manifest itself is where it belongs."""
        return {"digest": result.digest}

    def result_from_values(self, values: dict[str, Any]) -> Manifest | None:
        """See :meth:`ShardPass.result_from_values`; None where the manifest is another now."""
        found = _present_manifest(self.store)
        return found if found is not None and found.digest == values["digest"] else None

    def _check_keys(self, book: KeyBook) -> None:
        hashes = book.repeated()
        names = [self._names[number] for number in book.holders(hashes)] if hashes else []
        found = first_repeated_key(self.store, names, hashes) if names else None
        if found is not None:
            key, again, first = found
            raise ShardFormatError("duplicate_key", f"{again}: key={key!r} is in {first} too")

    def _reading(self, sampled: Sampled) -> list[dict[str, object]]:
        decision, fault = judge_reading(sampled, self._accepted)
        if fault is not None:
            raise ConfigError("URL", self.store.url, fault)
        return [decision.facts()]


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
