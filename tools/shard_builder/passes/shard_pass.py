"""A pass over a data set: a look at each shard by itself, and one conclusion from all of them.

``verify``, ``stats`` and ``index`` are passes. What a look finds depends on its shard alone, and
the conclusion takes the findings in the shards' order: where the looks took place makes no
difference.
"""

import base64
import json
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import Any, ClassVar, Generic, TypeVar

import grpo_stream
from grpo_stream.errors import StoreError
from grpo_stream.image_encoding import codec_versions
from grpo_stream.storage.store import Store
from shard_builder.datasets.scan_shards import OnProgress, map_in_order

Result = TypeVar("Result")
_BYTES = "base64"


class ShardPass(ABC, Generic[Result]):
    """What is looked for, and in which data set.

    Args:
        store: Where the set lies.
        settings: JSON values that decide what is found; with the set's URL they make this anew.
    """

    command: ClassVar[str]
    """Name on the command line."""

    def __init__(self, store: Store, settings: dict[str, Any]) -> None:
        self.store = store
        self.settings = settings

    @classmethod
    @abstractmethod
    def opened(cls, url: str, settings: dict[str, Any]) -> "ShardPass[Result]":
        """The same pass on another machine, or in another process."""

    @property
    @abstractmethod
    def num_shards(self) -> int:
        """How many looks there are."""

    @abstractmethod
    def set_facts(self) -> dict[str, Any]:
        """Names the content of the set, for machines to compare."""

    @abstractmethod
    def look(self, number: int, should_stop: Callable[[], bool], on_progress: OnProgress) -> Any:
        """What is in a shard. May be called from several threads.

        Args:
            number: The shard's, from 0.
            should_stop: Asked now and then; what is found after it said so is not used.
            on_progress: Is told of samples and bytes.
        """

    @abstractmethod
    def conclude(self, findings: Iterable[Any]) -> Result:
        """The result, from the findings of all shards in their order."""

    def fault_of(self, finding: Any) -> Exception | None:  # noqa: ARG002 - most have none
        """What is wrong with a shard, where that is part of what was found."""
        return None

    @abstractmethod
    def counts_of(self, number: int, finding: Any) -> tuple[int, int]:
        """Samples and bytes of a shard that was looked at."""

    def to_values(self, finding: Any) -> dict[str, Any]:
        """A finding as JSON values, and bytes."""
        values: dict[str, Any] = finding
        return values

    def from_values(self, values: dict[str, Any]) -> Any:
        """What :meth:`to_values` was given."""
        return values

    @abstractmethod
    def result_to_values(self, result: Result) -> dict[str, Any]:
        """A result as JSON values."""

    @abstractmethod
    def result_from_values(self, values: dict[str, Any]) -> Result | None:
        """What :meth:`result_to_values` was given; None where that holds no more."""

    def request(self) -> dict[str, Any]:
        """All that machines must have in common, as JSON values."""
        values = {
            "command": self.command,
            "builder_version": grpo_stream.__version__,
            "codecs": codec_versions(),
            "settings": self.settings,
            **self.set_facts(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def look_here(
    one: ShardPass[Any], numbers: Iterable[int], workers: int, on_progress: OnProgress
) -> Generator[Any, None, None]:
    """Looks at shards in threads of this process.

    Yields:
        What was found, in the order of ``numbers``.
    """
    stop = threading.Event()

    def look(number: int) -> Any:
        return one.look(number, stop.is_set, on_progress)

    with closing(map_in_order(look, numbers, workers, stop)) as findings:
        yield from findings


def pack_values(values: dict[str, Any]) -> bytes:
    """JSON values and bytes, compressed."""
    text = json.dumps(values, default=lambda data: {_BYTES: base64.b64encode(data).decode()})
    return zlib.compress(text.encode(), 1)


def unpack_values(data: bytes, where: str) -> dict[str, Any]:
    """What :func:`pack_values` was given.

    Raises:
        StoreError: it is damaged (cause ``unreadable``).
    """
    try:
        values = json.loads(zlib.decompress(data), object_hook=_with_bytes)
    except (ValueError, zlib.error) as error:
        raise StoreError("unreadable", f"{where} is damaged ({error}): remove it") from error
    found: dict[str, Any] = values
    return found


def _with_bytes(values: dict[str, Any]) -> Any:
    return base64.b64decode(values[_BYTES]) if values.keys() == {_BYTES} else values
