"""Samples in, shards out: a new shard whenever the one in hand is full."""

from dataclasses import dataclass
from pathlib import Path

from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.sample import Sample
from grpo_stream.shards.tar import ShardWriter


@dataclass(frozen=True)
class ShardLimits:
    """When a shard is full; whichever comes first."""

    max_samples: int = 1_000
    max_bytes: int = 256 * 2**20
    """A shard ends before the sample that would pass this size; one huge sample may."""


class Packer:
    """Writes shards ``shard-000000.tar``, ... into a folder.

    Args:
        folder: Must exist.
        limits: When a shard is full.
    """

    def __init__(self, folder: Path, limits: ShardLimits) -> None:
        self._folder = folder
        self._limits = limits
        self._writer: ShardWriter | None = None
        self._shards: list[ShardInfo] = []

    def add(self, sample: Sample) -> None:
        """Appends a sample to the shard in hand, or to a new one when that is full."""
        if self._writer is not None and self._is_full(self._writer, sample):
            self._finish()
        if self._writer is None:
            self._writer = ShardWriter(self._folder / shard_name(len(self._shards)))
        self._writer.add(sample)

    def close(self) -> tuple[ShardInfo, ...]:
        """Finishes the shard in hand; the shards in order."""
        self._finish()
        return tuple(self._shards)

    def discard(self) -> None:
        """Drops the shard in hand; finished ones stay, but without a manifest."""
        if self._writer is not None:
            self._writer.discard()

    def _finish(self) -> None:
        if self._writer is not None:
            self._shards.append(self._writer.close())
            self._writer = None

    def _is_full(self, writer: ShardWriter, sample: Sample) -> bool:
        num_bytes = writer.num_bytes + len(sample.image)
        return writer.num_samples >= self._limits.max_samples or num_bytes > self._limits.max_bytes


def shard_name(number: int) -> str:
    """File name of the shard with this number, from 0."""
    return f"shard-{number:06d}.tar"
