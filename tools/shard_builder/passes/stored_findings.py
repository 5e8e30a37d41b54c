"""What the parts of a pass have found, in a place that all machines share.

``request.json`` says what is looked for, in which set, and in how many parts. What was found is in
a folder named by its digest, a file a shard, so a part that was killed goes on where it was, and
one that runs twice writes the same again. Once all is concluded, ``result.json`` is left of it.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.storage.store import is_object_store, open_store
from shard_builder.datasets.scan_shards import map_in_order
from shard_builder.parts.plan_request import Part, difference, digest_of
from shard_builder.parts.stored_json import load_object
from shard_builder.passes.shard_pass import ShardPass, pack_values, unpack_values

PARTS_FOLDER = "_parts"
"""Beside the shards, where no other place is given."""

_REQUEST_NAME = "request.json"
_NUM_REQUESTS = 16
_WRITING_SECONDS = 5.0
_POLL_SECONDS = 0.05


class StoredFindings:
    """The findings of a pass in parts.

    Args:
        one: The pass.
        num_parts: How many there are.
        place: Folder or URL; empty for a folder beside the shards.

    Raises:
        ConfigError: it cannot be written, or a pass that differs is under way there.
    """

    def __init__(self, one: ShardPass[Any], num_parts: int, place: str) -> None:
        self._one = one
        self._num_parts = num_parts
        self._request = {**one.request(), "num_parts": num_parts}
        self._folder = digest_of(self._request)[:16]
        top = place or f"{one.store.url.rstrip('/')}/{PARTS_FOLDER}"
        self.place = f"{top.rstrip('/')}/{one.command}"
        if is_object_store(top) and top.startswith(("http://", "https://")):
            raise ConfigError("--parts-at", top, _SHARED)
        self._store = open_store(self.place)
        try:
            self._begin()
        except StoreError as error:
            if error.cause != "unwritable":
                raise
            raise ConfigError("--parts-at", top, f"cannot be written: {_SHARED}") from error

    def result(self) -> Any:
        """What was concluded; None where that has not been."""
        found = self._load(self._result_name)
        return None if found is None else self._one.result_from_values(found)

    def numbers_of(self, part: Part) -> list[int]:
        """The shards of a part: every N-th, so that parts are alike."""
        return list(range(self._one.num_shards))[part.number - 1 :: part.num_parts]

    def done(self) -> set[int]:
        """The shards whose findings are there."""
        names = self._store.walk(f"{self._folder}/")
        words = [name.rpartition("/")[2].removesuffix(".z") for name in names]
        return {int(word) for word in words if word.isdecimal()}

    def missing_parts(self) -> tuple[int, ...]:
        """The parts that are not whole yet."""
        missing = set(range(self._one.num_shards)) - self.done()
        return tuple(sorted({number % self._num_parts + 1 for number in missing}))

    def save(self, number: int, finding: Any) -> None:
        """Keeps what was found in a shard.

        Raises:
            GrpoStreamError: the fault, where that was found: it is not kept, so that the part may
                be run again once the shard is repaired.
        """
        fault = self._one.fault_of(finding)
        if fault is not None:
            raise fault
        self._store.write(self._name(number), pack_values(self._one.to_values(finding)))

    def conclude(self) -> Any:
        """The result from all findings, which it then stands for."""
        try:
            result = self._one.conclude(self._findings())
        except StoreError:
            # Another process has concluded in the meantime, and removed them.
            found = self.result()
            if found is None:
                raise
            return found
        words = json.dumps(self._one.result_to_values(result)).encode()
        self._store.write(self._result_name, words)
        self.clear(range(self._one.num_shards))
        return result

    def clear(self, numbers: Sequence[int]) -> None:
        """Removes findings, of shards that are concluded on."""
        with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
            for _ in pool.map(self._store.delete, map(self._name, numbers)):
                pass

    def _begin(self) -> None:
        words = json.dumps(self._request, indent=1).encode()
        if self._store.write_new(_REQUEST_NAME, words):
            return
        there = self._load_request()
        if there == self._request:
            return
        folder = digest_of(there)[:16]
        if not self._store.exists(f"{folder}/result.json"):
            expected = (
                f"differs from what is under way there: {difference(self._request, there)}. Give "
                "all parts one set, one N, the same flags and one version of the builder, or "
                f"remove {self.place} to begin anew"
            )
            raise ConfigError("--part", f"of {self._num_parts}", expected)
        self._store.write(_REQUEST_NAME, words)
        for name in self._store.walk(f"{folder}/"):
            self._store.delete(name)

    def _load_request(self) -> dict[str, Any]:
        """What is looked for there; in a folder it may be being written right now."""
        deadline = time.monotonic() + _WRITING_SECONDS
        while True:
            try:
                return self._load(_REQUEST_NAME) or {}
            except StoreError as error:
                if error.cause != "unreadable" or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)

    def _load(self, name: str) -> dict[str, Any] | None:
        return load_object(self._store, name, f"remove {self._store.url}")

    def _findings(self) -> Iterator[Any]:
        def read(number: int) -> Any:
            name = self._name(number)
            found = unpack_values(self._store.read(name), f"{self.place}/{name}")
            return self._one.from_values(found)

        numbers = range(self._one.num_shards)
        return map_in_order(read, numbers, _NUM_REQUESTS, threading.Event())

    @property
    def _result_name(self) -> str:
        return f"{self._folder}/result.json"

    def _name(self, number: int) -> str:
        return f"{self._folder}/{number:07d}.z"


_SHARED = "give a folder or bucket that all machines share and may write to"
