"""Folders and buckets behind one small interface: read, read a range, write, list."""

import os

from grpo_stream.storage.local_store import LocalStore, open_folder
from grpo_stream.storage.object_store import ObjectStore
from grpo_stream.storage.retry_policy import Retrier, RetryRules
from grpo_stream.storage.retrying_store import RetryingStore
from grpo_stream.storage.store_protocol import Store, is_object_store

__all__ = ["LocalStore", "ObjectStore", "Store", "is_object_store", "open_store"]

BUILDER_RULES = RetryRules(
    retry_deadline_seconds=180.0, stall_timeout_seconds=30.0, request_timeout_seconds=60.0
)
"""How long a build waits for a server: longer than a run does, which has a cluster waiting."""


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store that a path or URL names; nothing is read yet.

    A bucket's reads are tried again by :data:`BUILDER_RULES`, so that a server that sends next to
    nothing ends them too; what is written, obstore repeats by its own rules.

    Args:
        url: A folder, ``file:///folder``, ``s3://``, ``gs://``, ``az://`` (or ``abfs://``),
            ``http(s)://``.

    Raises:
        ConfigError: another scheme (``pipe:`` among them: no shell is ever run), a URL with a user
            or password, or an object store without the ``cloud`` extra.
    """
    text = os.fspath(url)
    if not is_object_store(text):
        return open_folder(text)
    retrier = Retrier(BUILDER_RULES)
    return RetryingStore(ObjectStore(text, retrier=retrier), retrier)
