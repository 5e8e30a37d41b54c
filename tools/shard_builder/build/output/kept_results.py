"""What earlier runs of a build, or other machines, have done: the results beside its shards."""

from collections.abc import Mapping

from grpo_stream.errors import StoreError
from grpo_stream.storage.store import Store
from shard_builder.build.assemble import read_result
from shard_builder.build.chunk_result import STATE_FOLDER, ChunkResult, result_name
from shard_builder.build.output.placed_files import Listing, first_missing, listed

SETTINGS_NAME = f"{STATE_FOLDER}/build.json"
"""What an unfinished build was asked for."""

PLAN_NAME = f"{STATE_FOLDER}/plan.json"
"""The plan of a build in parts; what its chunks are made of is in :data:`ROWS_FOLDER`."""

REQUEST_NAME = f"{STATE_FOLDER}/request.json"
"""What the plan is made for, while it is being made."""

ROWS_FOLDER = f"{STATE_FOLDER}/rows"


class KeptResults:
    """The results in a place, as they were when this was made.

    Args:
        store: The place.
        stores: Where the shards of each split are.
    """

    def __init__(self, store: Store, stores: Mapping[str, Store]) -> None:
        self._store = store
        self._stores = stores
        self._names = result_names(store)
        self._found: dict[str, Listing] = {}

    def result_of(self, split: str, number: int) -> ChunkResult | None:
        """What was made of a chunk, if all of that is still there."""
        name = result_name(split, number)
        if name not in self._names:
            return None
        try:
            result = read_result(self._store, name)
        except StoreError:
            return None
        store = self._stores[split]
        if split not in self._found:  # a listing of 10^5 files takes its time
            self._found[split] = listed(store)
        found = self._found[split]
        return None if first_missing(store, result.shards, found, result.tags) else result


def result_names(store: Store) -> set[str]:
    """Names of the results of all chunks that are done."""
    others = (SETTINGS_NAME, PLAN_NAME, REQUEST_NAME)
    names = store.walk(f"{STATE_FOLDER}/")
    return {name for name in names if name.endswith(".json") and name not in others}
