"""Where samples come from: one interface over shards and over raw records."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, ShardFormatError
from grpo_stream.images import DEFAULT_LIMITS, ImageLimits, Pixels, ResizeRule, decode, resize
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample
from grpo_stream.shards.store import Store, open_store
from grpo_stream.shards.tar import parse_sample
from grpo_stream.stream.plan import Indices

_MAX_OPEN_INDEXES = 256  # at 700 samples a shard about 16 MB


@dataclass(frozen=True, eq=False)
class StreamSample:
    """One sample in motion: decoded and resized, ready for a processor that resizes no more."""

    key: str
    """Unique name in the data set."""
    pixels: Pixels
    """uint8, shape (height, width, 3), at the model's size."""
    prompt: str
    solution: tuple[float, ...]
    """``(x1, y1, x2, y2)``, ends exclusive, or ``(x, y)``; frame ``original``."""
    scales: Size
    """Width and height of the original image in pixels."""
    extra: dict[str, Any]
    """The record's own further fields."""

    @property
    def model_size(self) -> Size:
        """Width and height of ``pixels``: the frame ``model``."""
        return Size(self.pixels.shape[1], self.pixels.shape[0])

    @classmethod
    def from_sample(
        cls,
        sample: Sample,
        rule: ResizeRule | None,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> "StreamSample":
        """Decodes a sample at rest and resizes it to the size that ``rule`` gives.

        Raises:
            ImageError: the bytes are no usable image.
            ShardFormatError: cause ``size_mismatch``: the image has not the size that its JSON
                says, so the frame of its solution is unknown; ``several_images`` and
                ``several_boxes``: a stream sample is of one each.
        """
        for cause, count in (
            ("several_images", len(sample.images)),
            ("several_boxes", len(sample.solutions)),
        ):
            if count > 1:
                detail = f"{sample.key}: {count}, where the stream takes one"
                raise ShardFormatError(cause, detail)
        pixels = decode(sample.image, limits)
        stored = Size(pixels.shape[1], pixels.shape[0])
        if stored != sample.size:
            detail = f"{sample.key}: the image is {stored}, its JSON says {sample.size}"
            raise ShardFormatError("size_mismatch", detail)
        if rule is not None:
            pixels = resize(pixels, rule.target(stored))
        kx = sample.original_size.width / stored.width
        ky = sample.original_size.height / stored.height
        solution = tuple(n * (ky if i % 2 else kx) for i, n in enumerate(sample.solution))
        return cls(sample.key, pixels, sample.prompt, solution, sample.original_size, sample.extra)


class Source(Protocol):
    """Samples by (shard, place in the shard); reading is thread-safe."""

    @property
    def digest(self) -> str:
        """Changes whenever the data do."""

    @property
    def shard_counts(self) -> Indices:
        """int64, shape (num_shards,): samples per shard."""

    def read(self, shard: int, sample: int) -> Sample:
        """One sample at rest.

        Raises:
            StoreError: it cannot be fetched.
            ShardFormatError: its bytes are not what index and format say.
            RecordError: the raw record is no sample.
        """


class ShardSource:
    """The shards of a manifest, read by one ranged read per sample.

    Args:
        store: A URL or folder, or an open store.

    Raises:
        ManifestError: there is no data set, or none that this version reads.
        ConfigError: its manifest counts samples of several images or boxes.
    """

    def __init__(self, store: str | Store) -> None:
        self._store = open_store(store) if isinstance(store, str) else store
        self.manifest = Manifest.load(self._store)
        _check_totals(self._store.url, self.manifest.totals)
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.manifest.digest

    @property
    def shard_counts(self) -> Indices:
        """int64, shape (num_shards,)."""
        return np.array([shard.num_samples for shard in self.manifest.shards], dtype=np.int64)

    def read(self, shard: int, sample: int) -> Sample:
        """Fetches and checks one sample; see :meth:`Source.read`."""
        info = self.manifest.shards[shard]
        entry = self._index(shard)[sample]
        data = self._store.read_range(info.name, entry.offset, entry.num_bytes)
        return parse_sample(data, info.name, entry)

    def _index(self, shard: int) -> ShardIndex:
        with self._lock:
            index = self._indexes.get(shard)
            if index is not None:
                self._indexes.move_to_end(shard)
                return index
        # Loaded outside the lock: two threads may fetch the same index once each at the start,
        # which is cheaper than making every reader wait for one slow request.
        index = ShardIndex.load(self._store, self.manifest.shards[shard])
        with self._lock:
            self._indexes[shard] = index
            while len(self._indexes) > _MAX_OPEN_INDEXES:
                self._indexes.popitem(last=False)
        return index


def _check_totals(url: str, totals: dict[str, int]) -> None:
    counts = [
        f"{totals[name]} samples of several {what}"
        for name, what in (("num_multi_image", "images"), ("num_multi_box", "boxes"))
        if totals.get(name, 0)
    ]
    if counts:
        expected = "the stream takes one of each: build it with --several reject"
        raise ConfigError("shards", url, f"holds {' and '.join(counts)}; {expected}")
