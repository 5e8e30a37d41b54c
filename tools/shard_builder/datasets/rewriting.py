"""Where data sets made of data sets are written: locked, continued and committed as a build is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import grpo_stream
from grpo_stream.errors import ConfigError, ShardFormatError, StoreError
from grpo_stream.shards.manifest import MANIFEST_VERSION, Manifest
from grpo_stream.storage.store import LocalStore, Store
from shard_builder.build.chunk_result import ChunkResult
from shard_builder.build.output.output_folder import OUR_NAMES, Output
from shard_builder.build.workers.worker import split_store
from shard_builder.datasets.copy_samples import SetWriter


class Rewriting:
    """Data sets in the making, one a split.

    Args:
        output: The place, locked.
        made_by: What decides the content.
        stores: Where each split goes.
        found: The manifests, where all is done already.
    """

    def __init__(
        self,
        output: Output,
        made_by: Mapping[str, Any],
        stores: Mapping[str, Store],
        found: dict[str, Manifest] | None,
    ) -> None:
        self.found = found
        self._output = output
        self._made_by = made_by
        self._stores = stores
        self._writers: dict[str, SetWriter] = {}

    def writer(self, split: str, max_samples: int, max_bytes: int) -> SetWriter:
        """Writes the samples of a split; shards that an earlier run has finished are kept.

        Args:
            split: Its name.
            max_samples: See :class:`SetWriter`.
            max_bytes: See :class:`SetWriter`.
        """
        done: list[ChunkResult] = []
        while (result := self._output.result_of(split, len(done))) is not None:
            done.append(result)

        def keep(number: int, result: ChunkResult) -> None:
            result.split, result.number = split, number
            self._output.save_result(result)
            self._output.check(asks_store=False)

        store = self._stores[split]
        writer = SetWriter(store, max_samples, max_bytes, done, keep)
        self._writers[split] = writer
        return writer

    def finish(self) -> dict[str, Manifest]:
        """Writes the manifests, after every shard."""
        manifests = {
            split: Manifest(
                version=MANIFEST_VERSION,
                shards=tuple(writer.shards),
                settings={**self._made_by, "split_name": split},
                builder_version=grpo_stream.__version__,
                totals=writer.totals(),
            )
            for split, writer in self._writers.items()
        }
        tags = {split: writer.tags for split, writer in self._writers.items()}
        self._output.commit(manifests, tags)
        return manifests

    def close(self) -> None:
        """Drops unfinished shards."""
        for writer in self._writers.values():
            writer.close()


@contextmanager
def rewriting(
    out: str,
    splits: Sequence[str],
    made_by: Mapping[str, Any],
    sources: Sequence[Store],
    *,
    overwrite: bool,
) -> Iterator[Rewriting]:
    """Begins, or continues, to write data sets.

    What a damaged source or a setting that cannot work has left is removed; what a kill or a
    failing store has left stays, for the same command to continue.

    Args:
        out: Folder or URL.
        splits: Names of the splits; one empty name for one data set.
        made_by: Everything that decides the content.
        sources: Data sets that must not be written over.
        overwrite: Replace what is there.

    Raises:
        ConfigError: another builder is at work there, or something is there.
        StoreError: it cannot be written.
    """
    stores = {split: split_store(out, split) for split in splits}
    for store in stores.values():
        if any(_is_same(store, source) for source in sources):
            raise ConfigError("--out", store.url, "is the data set itself: choose another folder")
        if not overwrite:
            _refuse_foreign_tars(store)
    output = Output(out, tuple(splits), "")
    try:
        found = output.begin(dict(made_by), overwrite=overwrite)
        work = Rewriting(output, made_by, stores, found)
        try:
            yield work
        except (ConfigError, ShardFormatError):
            work.close()
            for store in stores.values():
                for name in (name for name in _names(store) if _is_ours(name)):
                    store.delete(name)
            output.abandon()
            raise
        finally:
            work.close()
    finally:
        output.close()


def _refuse_foreign_tars(store: Store) -> None:
    for name in _names(store):
        if name.endswith(".tar") and not _is_ours(name):
            expected = f"holds {name}: choose another folder or add --overwrite"
            raise ConfigError("--out", store.url, expected)


def _is_ours(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in OUR_NAMES)


def _names(store: Store) -> list[str]:
    try:
        return store.list_names()
    except StoreError as error:
        if error.cause == "not_found":
            return []
        raise


def _is_same(a: Store, b: Store) -> bool:
    if isinstance(a, LocalStore) and isinstance(b, LocalStore):
        return a.folder.resolve() == b.folder.resolve()
    return a.url.rstrip("/") == b.url.rstrip("/")
