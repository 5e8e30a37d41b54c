"""Passes over a set that has a manifest, which says how many looks there are."""

from typing import Any

from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import Store
from shard_builder.passes.look_values import set_facts
from shard_builder.passes.shard_pass import Result, ShardPass


class ManifestPass(ShardPass[Result]):
    """A look at each shard that a manifest names.

    Args:
        store: Where the set lies.
        settings: See :class:`ShardPass`.
        manifest: The set's.
    """

    def __init__(self, store: Store, settings: dict[str, Any], manifest: Manifest) -> None:
        super().__init__(store, settings)
        self._manifest = manifest

    @property
    def num_shards(self) -> int:
        """See :meth:`ShardPass.num_shards`."""
        return len(self._manifest.shards)

    def set_facts(self) -> dict[str, Any]:
        """See :meth:`ShardPass.set_facts`."""
        return set_facts(self._manifest)

    def counts_of(self, number: int, finding: Any) -> tuple[int, int]:
        """See :meth:`ShardPass.counts_of`."""
        del finding
        info = self._manifest.shards[number]
        return info.num_samples, info.num_bytes
