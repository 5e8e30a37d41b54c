"""A JSON object in a store, which another process may be writing or may not have written yet."""

import json
from typing import Any

from grpo_stream.errors import StoreError
from grpo_stream.storage.store import Store


def load_object(store: Store, name: str, remedy: str) -> dict[str, Any] | None:
    """What a JSON file holds; None where there is none.

    Args:
        store: The place.
        name: Of the file.
        remedy: What to do about a file that is no JSON object.

    Raises:
        StoreError: ``unreadable``: it is no JSON object, as when only half of it is there; or the
            store cannot be read.
    """
    try:
        found = json.loads(store.read(name))
    except StoreError as error:
        if error.cause != "not_found":
            raise
        return None
    except ValueError as error:
        raise _damaged(store, name, f" ({error})", remedy) from error
    if not isinstance(found, dict):
        raise _damaged(store, name, "", remedy)
    return found


def _damaged(store: Store, name: str, why: str, remedy: str) -> StoreError:
    return StoreError("unreadable", f"{store.url}: {name} is damaged{why}: {remedy}")
