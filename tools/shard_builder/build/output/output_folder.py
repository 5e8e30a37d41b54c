"""Where a build writes, and what it finds there: nothing, itself unfinished, or a data set.

While a build is under way, ``_build/`` beside the shards holds what it has done so far:
``_build/build.json`` says what is being built, ``_build/<split>-000012.json`` that the shards of
a chunk are where they belong and what came of its records. A build that was killed resumes from
there. Of a build in parts ``_build/plan.json`` and ``_build/rows/`` hold the plan that its parts
read. The folder vanishes when the manifests are written.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from types import MappingProxyType
from typing import Any

import grpo_stream
from grpo_stream.errors import ConfigError, ManifestError, StoreError
from grpo_stream.shards.manifest import MANIFEST_NAME, Manifest
from grpo_stream.storage.store import LocalStore, Store, open_store
from shard_builder.build.chunk_result import STATE_FOLDER, ChunkResult, result_name
from shard_builder.build.output.kept_results import (
    PLAN_NAME,
    REQUEST_NAME,
    ROWS_FOLDER,
    SETTINGS_NAME,
    KeptResults,
    result_names,
)
from shard_builder.build.output.output_lock import lock_output
from shard_builder.build.output.placed_files import first_missing, listed
from shard_builder.build.output.reject_lists import REJECTS_NAME, WARNINGS_NAME
from shard_builder.build.workers.worker import split_store

OUR_NAMES = ("shard-*.tar", "shard-*.tar.*", REJECTS_NAME, WARNINGS_NAME, MANIFEST_NAME)
"""Patterns of the files that a build writes."""

Tags = Mapping[str, Mapping[str, str]]
_NO_TAGS: Tags = MappingProxyType({})
_NUM_REQUESTS = 16  # at a time, to a bucket


class Output:
    """The place of a data set that is being built.

    Args:
        out: Folder or URL.
        splits: Names of the splits; one empty name where the set is not split.
        images_root: Where the images come from; not part of the settings because the finished
            data set does not name the machine's paths.

    Raises:
        ConfigError: another build is at work there, or it cannot be written.
    """

    def __init__(self, out: str, splits: tuple[str, ...], images_root: str) -> None:
        self._store = open_store(out)
        self._out = out
        self._stores = {split: split_store(out, split) for split in splits}
        self._settings: dict[str, Any] = {}
        self._images_root_sha256 = images_root_digest(images_root)
        self._lock = lock_output(self._store, out)
        self._done: KeptResults | None = None

    def begin(self, settings: dict[str, Any], *, overwrite: bool) -> dict[str, Manifest] | None:
        """Makes room, or goes on with what an earlier run of this build has left.

        Args:
            settings: Everything that decides the content.
            overwrite: Whether what is there may be replaced.

        Returns:
            The manifests if the finished data set is there already, else None.

        Raises:
            ConfigError: something else is there, or some of it is missing, and ``overwrite`` is
                not set.
        """
        self._settings = json.loads(json.dumps(settings))
        if not self._store.exists(PLAN_NAME):  # else parts may be at work
            self.remove_unfinished()
        started = self._load_started()
        is_ours = started == self._started()
        manifests = self._load_finished()
        if manifests is not None and (is_ours or not overwrite):
            missing = next(self._missing_files(manifests), None)
            if missing is None:
                self.clear_state()
                return manifests
            if not is_ours:
                expected = f"holds this data set without {missing}: add --overwrite to build anew"
                raise ConfigError("--out", self._out, expected)
        if is_ours:
            for store in self._stores.values():
                store.delete(MANIFEST_NAME)  # of a split, or damaged: all come at the end
            self._done = KeptResults(self._store, self._stores)
            return None
        names = {split: _our_names(store) for split, store in self._stores.items()}
        if not overwrite:
            self._refuse(started, names)
        for split, store in self._stores.items():
            store.delete(MANIFEST_NAME)  # first: from here on it is no data set
            names[split].discard(MANIFEST_NAME)
        self.clear_state()
        for split, store in self._stores.items():
            _delete(store, names[split])
        self._lock.check()
        if not self._store.write_new(SETTINGS_NAME, json.dumps(self._started(), indent=1).encode()):
            expected = "another build has just begun there: wait for it or choose another place"
            raise ConfigError("--out", self._out, expected)
        return None

    def adopt(self, settings: dict[str, Any], images_root_sha256: str) -> None:
        """Takes over an unfinished build whose chunks others have built, to finish it.

        Args:
            settings: Everything that decides the content, as the build was begun with.
            images_root_sha256: :func:`images_root_digest` of where its images came from.
        """
        self._settings = settings
        self._images_root_sha256 = images_root_sha256

    def result_of(self, split: str, number: int) -> ChunkResult | None:
        """What an earlier run of this build made of a chunk, if all of that is still there."""
        return None if self._done is None else self._done.result_of(split, number)

    def save_result(self, result: ChunkResult) -> None:
        """Keeps what came of a chunk, after its shards."""
        self._store.write(result_name(result.split, result.number), result.to_json())

    def check(self, *, asks_store: bool = True) -> None:
        """Raises StoreError (cause ``taken_over``) where another build has the place now.

        Args:
            asks_store: Else only what was noticed in the background counts, which costs nothing.
        """
        if asks_store or self._lock.is_lost:
            self._lock.check()

    def commit(self, manifests: dict[str, Manifest], tags: Tags = _NO_TAGS) -> None:
        """Saves the manifests, the last act of a build, and removes its state.

        Args:
            manifests: By split.
            tags: By split, the ETags of what was put into a bucket.

        Raises:
            StoreError: cause ``not_found``: a shard that was written is there no more, or is
                another one now; ``taken_over``: another build has the place now, or its manifest is
                there.
        """
        self._lock.check()
        if self._load_started() != self._started():
            detail = f"{self._out}: {SETTINGS_NAME} is not this build's any more: it stops here"
            raise StoreError("taken_over", detail)
        missing = next(self._missing_files(manifests, tags), None)
        if missing is not None:
            detail = f"{self._out}: {missing} was written, but is there no more, or is another now"
            raise StoreError("not_found", f"{detail}: run the same command again to make it anew")
        for split, manifest in manifests.items():
            self._save(self._stores[split], manifest)
        self.clear_state()

    def _save(self, store: Store, manifest: Manifest) -> None:
        """Writes a manifest; into a bucket only where none is, whatever became of the lock."""
        if isinstance(store, LocalStore):
            manifest.save(store)  # its lock cannot be lost, and the file appears whole
            return
        words = manifest.to_json()
        if not store.write_new(MANIFEST_NAME, words) and store.read(MANIFEST_NAME) != words:
            detail = f"{store.url}: another process has written a manifest: this build stops here"
            raise StoreError("taken_over", detail)

    def abandon(self) -> None:
        """Removes the state and the shards of a build that came to nothing; its lists stay."""
        for store in self._stores.values():
            _delete(store, _our_names(store) - {REJECTS_NAME, WARNINGS_NAME})
        self.clear_state()

    def close(self) -> None:
        """Lets other builds in."""
        self._lock.close()

    def _started(self) -> dict[str, Any]:
        root, version = self._images_root_sha256, grpo_stream.__version__
        return {**self._settings, "images_root_sha256": root, "builder_version": version}

    def _load_started(self) -> dict[str, Any] | None:
        if not self._store.exists(SETTINGS_NAME):
            return None
        try:
            started = json.loads(self._store.read(SETTINGS_NAME))
        except (ValueError, RecursionError):
            started = None
        return started if isinstance(started, dict) else {}

    def _load_finished(self) -> dict[str, Manifest] | None:
        manifests = {}
        for split, store in self._stores.items():
            if not store.exists(MANIFEST_NAME):
                return None
            try:
                manifest = Manifest.load(store)
            except ManifestError:
                return None
            same = {**self._settings, "split_name": split} == manifest.settings
            if not same or manifest.builder_version != grpo_stream.__version__:
                return None
            manifests[split] = manifest
        return manifests

    def _missing_files(
        self, manifests: dict[str, Manifest], tags: Tags = _NO_TAGS
    ) -> Iterator[str]:
        for split, manifest in manifests.items():
            store = self._stores[split]
            name = first_missing(store, manifest.shards, listed(store), tags.get(split, {}))
            if name is not None:
                yield f"{split}/{name}" if split else name

    def _refuse(self, started: dict[str, Any] | None, names: dict[str, set[str]]) -> None:
        for split, found in names.items():
            where = f"{self._out}/{split}" if split else self._out
            if MANIFEST_NAME in found:
                expected = "holds another data set: choose another folder or add --overwrite"
                raise ConfigError("--out", where, expected)
        if started == {}:
            expected = (
                f"holds an unfinished build whose {SETTINGS_NAME} is damaged: choose another "
                "folder or add --overwrite"
            )
            raise ConfigError("--out", self._out, expected)
        if started is not None:
            ours = self._started()
            differing = sorted(k for k in ours | started if ours.get(k) != started.get(k))
            expected = (
                f"holds an unfinished build that differs in {', '.join(differing)}: run that one "
                "again to resume it, choose another folder or add --overwrite"
            )
            raise ConfigError("--out", self._out, expected)
        if any(name.endswith(".tar") for found in names.values() for name in found):
            expected = "holds shards without a manifest: choose another folder or add --overwrite"
            raise ConfigError("--out", self._out, expected)

    def clear_state(self) -> None:
        """Removes ``_build/``."""
        self._store.delete(PLAN_NAME)  # first: parts that are still at work notice it
        _delete(self._store, result_names(self._store))
        if isinstance(self._store, LocalStore):
            shutil.rmtree(self._store.folder / ROWS_FOLDER, ignore_errors=True)
        else:
            _delete(self._store, self._store.walk(f"{ROWS_FOLDER}/"))
        self._store.delete(REQUEST_NAME)
        self._store.delete(SETTINGS_NAME)

    def remove_unfinished(self) -> None:
        """Removes files that a killed process has left without their name."""
        patterns = [f".{name}.*.tmp" for name in OUR_NAMES]
        stores = [(store, patterns) for store in self._stores.values()]
        for store, found in [*stores, (self._store, [f"{STATE_FOLDER}/.*.tmp"])]:
            if isinstance(store, LocalStore):
                for path in (path for pattern in found for path in store.folder.glob(pattern)):
                    path.unlink(missing_ok=True)


def images_root_digest(images_root: str) -> str:
    """What is kept of the place of a build's images: not the path of a machine."""
    return hashlib.sha256(images_root.encode(errors="surrogateescape")).hexdigest()


def _our_names(store: Store) -> set[str]:
    """What a build writes, and a new one therefore replaces; other files are left alone."""
    if isinstance(store, LocalStore) and not store.folder.is_dir():
        return set()
    names = store.list_names()
    return {name for name in names if any(fnmatch(name, pattern) for pattern in OUR_NAMES)}


def _delete(store: Store, names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        for _ in pool.map(store.delete, names):
            pass
