"""Manifests in object storage are fetched once per node: at a million shards one takes 154 MB."""

from collections.abc import Sequence

import torch

from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.retrying_store import RetryRules, open_retrying
from grpo_stream.storage.store import is_object_store
from grpo_stream.train.cluster.together import once_per_node


def load_manifests(urls: Sequence[str], retry: RetryRules | None = None) -> dict[str, Manifest]:
    """Reads the manifests that a node's ranks all need; its first rank fetches them for the others.

    Collective, once ranks have joined: all call it with the same URLs. A rank that has not joined
    others reads nothing here, and folders are left to the system's own cache.

    Returns:
        URL -> manifest, or nothing.

    Raises:
        ManifestError: there is no data set, on all ranks of the node.
        StoreError: one cannot be read, on all ranks of the node.
    """
    far = [url for url in urls if is_object_store(url)]
    if not far or not torch.distributed.is_initialized():
        return {}
    read = once_per_node(lambda: [Manifest.fetch(open_retrying(url, retry)) for url in far])
    return {url: Manifest.from_json(data) for url, data in zip(far, read, strict=True)}
