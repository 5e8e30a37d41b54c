"""Manifests in object storage are fetched once per node: at a million shards one takes 154 MB."""

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object

from grpo_stream.errors import GrpoStreamError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.retrying_store import RetryRules, open_patient
from grpo_stream.storage.store import is_object_store
from grpo_stream.train.cluster.node_checks import node_name


def load_manifests(urls: Sequence[str], retry: RetryRules | None = None) -> dict[str, Manifest]:
    """Reads the manifests that a node's ranks all need; its first rank fetches them for the others.

    Collective, once ranks have joined: all call it with the same URLs. What it sends stays within
    the node, over gloo. A rank that is alone on its node, or has not joined others, reads nothing
    here, and folders are left to the system's own cache.

    Returns:
        URL -> manifest, or nothing.

    Raises:
        ManifestError: there is no data set, on all ranks of the node.
        StoreError: one cannot be read, on all ranks of the node.
    """
    far = [url for url in urls if is_object_store(url)]
    if not far or not torch.distributed.is_initialized():
        return {}
    rank = torch.distributed.get_rank()
    on_node = [other for other, name in gather_object([(rank, node_name())]) if name == node_name()]
    if len(on_node) == 1:
        return {}
    group = torch.distributed.new_group(on_node, backend="gloo", use_local_synchronization=True)
    sent: list[list[bytes] | GrpoStreamError | None] = [None]
    if rank == on_node[0]:
        try:
            sent = [[Manifest.fetch(open_patient(url, retry)) for url in far]]
        except GrpoStreamError as error:
            sent = [error]
    # The group stays: torch would name the next one like it, and a rank could find the addresses of
    # this one in the store and wait for ever (torch 2.13, ``_hash_ranks_to_str``).
    torch.distributed.broadcast_object_list(sent, on_node[0], group)
    (read,) = sent
    if not isinstance(read, list):
        raise read or RuntimeError("the node's first rank sent nothing")
    return {url: Manifest.from_json(data) for url, data in zip(far, read, strict=True)}
