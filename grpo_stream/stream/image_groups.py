"""Whole image groups: a source whose unit is an image with all of its records.

In shards that were built with ``--group-by image`` the records of an image are neighbours. The
index of a shard tells where one image ends: it has the checksum and the size of every stored
image. The manifest has the number of groups of each shard, so the plan's arithmetic goes over
groups as it goes over samples, and an image is decoded once for all its records.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from grpo_stream.errors import ConfigError, ShardFormatError
from grpo_stream.order.epoch_plan import Indices
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.source_over_source import SourceOverSource
from grpo_stream.stream.sources import Encoded, ShardSource
from grpo_stream.stream.stream_sample import StreamSample

_NUM_KEPT = 256  # shards whose boundaries are remembered, a few kB each


@dataclass(frozen=True)
class SampleGroup:
    """Samples at rest that share an image."""

    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class EncodedGroup:
    """The same, fetched and not yet checked."""

    members: tuple[Encoded, ...]

    def sample(self) -> Any:
        """A :class:`SampleGroup`; see :meth:`grpo_stream.stream.sources.Encoded.sample`."""
        return SampleGroup(tuple(member.sample() for member in self.members))


class OpenGroup(tuple[StreamSample, ...]):
    """The samples of an image, opened."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """That of the first, by which a group is named that no batch can be made of."""
        return self[0].key


def open_image_group(group: Any, config: StreamConfig) -> OpenGroup:
    """What a stream of groups does with one: its image is decoded and resized once.

    Args:
        group: A :class:`SampleGroup`.
        config: The stream's settings.

    Raises:
        ImageError, ShardFormatError: as for a sample by itself; the whole group is bad then.
    """
    first = StreamSample.from_sample(group.samples[0], config.resize, config.limits)
    others = (StreamSample.over(sample, first.pixels) for sample in group.samples[1:])
    return OpenGroup((first, *others))


class ImageGroupSource(SourceOverSource[ShardSource]):
    """A source of image groups over shards; as :class:`grpo_stream.stream.sources.Source`.

    Args:
        samples: The shards.

    Raises:
        ConfigError: they were not built with ``--group-by image``, or have samples that are not
            of one image.
    """

    def __init__(self, samples: ShardSource) -> None:
        super().__init__(samples)
        manifest = samples.manifest
        self._counts: Indices = np.asarray(manifest.group_counts, dtype=np.int64)
        if len(self._counts) != len(manifest.shards):
            expected = (
                "needs shards whose records of an image are neighbours: build them with "
                "shard-builder build --group-by image; or use none"
            )
            raise ConfigError("group_by", "image", expected)
        for name in ("num_multi_image", "num_text_only"):
            if count := manifest.totals.get(name, 0):
                expected = f"is for samples of one image, and {count} are not ({name}); use none"
                raise ConfigError("group_by", "image", expected)
        self._starts = lru_cache(_NUM_KEPT)(self._find_starts)

    @property
    def digest(self) -> str:
        """Not the manifest's: a position among groups is none among samples."""
        return hashlib.sha256(f"image groups of {self._samples.digest}".encode()).hexdigest()

    def identity(self, shard: int, sample: int) -> str:
        """See :meth:`grpo_stream.stream.sources.Source.identity`."""
        return f"{self.digest[:12]}: {self._samples.manifest.shards[shard].name} image {sample}"

    @property
    def shard_counts(self) -> Indices:
        """int64, shape (num_shards,): groups per shard."""
        return self._counts

    def sample_bytes(self, shard: int) -> int:
        """About how many bytes a group has."""
        num_samples = int(self._samples.shard_counts[shard])
        return self._samples.sample_bytes(shard) * num_samples // max(1, int(self._counts[shard]))

    def runs(self, shard: int, samples: Sequence[int]) -> list[list[int]]:  # noqa: ARG002
        """Each group by itself: its samples are neighbours, and are one request."""
        return [[group] for group in samples]

    def fetch(self, shard: int, samples: Sequence[int]) -> list[EncodedGroup]:
        """See :meth:`grpo_stream.stream.sources.Source.fetch`."""
        return [
            EncodedGroup(
                tuple(
                    member
                    for run in self._samples.runs(shard, self._members(shard, group))
                    for member in self._samples.fetch(shard, run)
                )
            )
            for group in samples
        ]

    def read(self, shard: int, sample: int) -> Any:
        """Reads one group and checks it."""
        (encoded,) = self.fetch(shard, [sample])
        return encoded.sample()

    def invalidate(self, shard: int) -> None:
        """See :meth:`grpo_stream.stream.sources.Source.invalidate`."""
        self._starts.cache_clear()
        super().invalidate(shard)

    def describe(self, shard: int, sample: int) -> str:
        """Names a group for people, without reading it."""
        name = self._samples.manifest.shards[shard].name
        return f"{self._samples.describe(shard, 0).partition(name)[0]}{name} image {sample}"

    def _members(self, shard: int, group: int) -> list[int]:
        starts = self._starts(shard)
        return list(range(int(starts[group]), int(starts[group + 1])))

    def _find_starts(self, shard: int) -> Indices:
        """First sample of each group, and behind them the number of samples."""
        index = self._samples.index(shard)
        starts = group_starts(index)
        if len(starts) != self._counts[shard]:
            detail = (
                f"{self._samples.manifest.shards[shard].name}: its index has {len(starts)} images "
                f"in a row, the manifest {self._counts[shard]}"
            )
            raise ShardFormatError("bad_index", detail)
        return np.append(starts, len(index))


def group_starts(index: ShardIndex) -> Indices:
    """The first sample of every run of samples that have one image: int64, ascending."""
    images = index.parts[(index.parts["width"] > 0) & (index.parts["image"] == 0)]
    names = ["crc32", "num_bytes", "width", "height"]
    is_other = np.any([images[name][1:] != images[name][:-1] for name in names], axis=0)
    return np.flatnonzero(np.append([len(images) > 0], is_other)).astype(np.int64)
