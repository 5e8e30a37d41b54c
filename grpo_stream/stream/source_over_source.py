"""A source over another one: what it hands on as it is."""

from collections.abc import Iterable
from typing import Generic, TypeVar

from grpo_stream.stream.sources import Source

S = TypeVar("S", bound=Source)


class SourceOverSource(Generic[S]):
    """What sources that arrange the samples of another one have in common.

    Args:
        samples: The other one.
    """

    def __init__(self, samples: S) -> None:
        self._samples = samples

    @property
    def is_remote(self) -> bool:
        """As the samples."""
        return self._samples.is_remote

    @property
    def keeps_shards(self) -> bool:
        """As the samples."""
        return self._samples.keeps_shards

    def expect(self, shards: Iterable[int], num_shards_at_once: int) -> None:
        """See :meth:`.sources.Source.expect`."""
        self._samples.expect(shards, num_shards_at_once)

    def invalidate(self, shard: int) -> None:
        """See :meth:`.sources.Source.invalidate`."""
        self._samples.invalidate(shard)

    def metrics(self) -> dict[str, float]:
        """See :meth:`.sources.Source.metrics`."""
        return self._samples.metrics()

    def close(self) -> None:
        """Ends what runs in the background."""
        self._samples.close()
