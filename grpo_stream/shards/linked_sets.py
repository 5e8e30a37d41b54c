"""Data sets whose manifest names shards that lie elsewhere: joined without copying a shard.

Such a manifest has ``sources``: URLs, or paths that are relative to its own folder. A shard called
``001/shard-000000.tar`` is ``shard-000000.tar`` of the second. The digest goes over these names, so
sources may move without a saved position being lost.
"""

import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path

from grpo_stream.errors import ManifestError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.joined_store import JoinedStore
from grpo_stream.storage.store import LocalStore, Store, is_object_store, open_store


def with_sources(
    store: Store, sources: Sequence[str], open_other: Callable[[str], Store] = open_store
) -> Store:
    """The store in which all shards of a manifest are.

    Args:
        store: Where the manifest lies.
        sources: What it names: :attr:`Manifest.sources`.
        open_other: Opens the store of a URL.

    Returns:
        ``store`` itself, where its shards are beside it, or it is such a store already.

    Raises:
        ManifestError: a folder that it names is not there.
    """
    if not sources or isinstance(store, JoinedStore):
        return store
    others = [open_other(source_url(store, source)) for source in sources]
    for source, other in zip(sources, others, strict=True):
        if isinstance(other, LocalStore) and not other.folder.is_dir():
            raise ManifestError(
                f"{store.url}: its shards lie in {source}, and no folder {other.url} is there: "
                "bring it back, or join anew with shard-builder merge --by-manifest --overwrite"
            )
    return JoinedStore(store, others)


def source_url(store: Store, source: str) -> str:
    """URL or path of a source.

    Args:
        store: Where the manifest lies.
        source: As the manifest names it.
    """
    if is_object_store(source) or os.path.isabs(source):  # noqa: PTH117 - a URL, perhaps
        return source
    if is_object_store(store.url):
        scheme, _, rest = store.url.partition("://")
        bucket, _, path = rest.partition("/")
        inner = posixpath.normpath(posixpath.join("/", path, source))
        return f"{scheme}://{bucket}{inner}"
    return os.path.normpath(Path(store.url).resolve() / source)


def source_name(store: Store, other: Store) -> str:
    """What a manifest in ``store`` calls ``other``: a relative path where both are folders."""
    if isinstance(store, LocalStore) and isinstance(other, LocalStore):
        here, there = store.folder.resolve(), other.folder.resolve()
        return Path(os.path.relpath(there, here)).as_posix()
    return other.url.rstrip("/")


def open_set(url: str) -> tuple[Store, Manifest]:
    """A data set by its URL, and the store in which its shards are.

    Raises:
        ManifestError: there is none, or shards that it names are not there.
        StoreError: it cannot be read.
    """
    store = open_store(url)
    manifest = Manifest.load(store)
    return with_sources(store, manifest.sources), manifest
