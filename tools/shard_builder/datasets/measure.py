"""What is in a data set, in numbers: one pass over indexes and JSON, no image is decoded."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from grpo_stream.boxes import Point, Size
from grpo_stream.errors import ImageError
from grpo_stream.images import ResizeRule
from grpo_stream.shards.index import PART_KINDS, ShardIndex
from grpo_stream.shards.manifest import Manifest, ShardInfo
from grpo_stream.storage.store import Store
from grpo_stream.targets import bounds_of, read_shape, shape_numbers
from shard_builder.build.output.reject_lists import WARNINGS_NAME
from shard_builder.datasets.read_json_members import as_sample, iter_metas
from shard_builder.datasets.scan_shards import OnProgress, no_progress
from shard_builder.datasets.streaming_quantiles import BoundedCounter, Spread

HEAT_CELLS = 32
"""The heat map has as many columns and rows."""
_KINDS = {PART_KINDS.index(kind): kind for kind in ("jpg", "png", "webp")}


@dataclass(eq=False)
class Measures:
    """What a data set holds. Its size does not depend on the data set's.

    Boxes are measured in pixels of the stored image, tokens at the size that ``rule`` gives.
    """

    rule: ResizeRule
    num_samples: int = 0
    num_shards: int = 0
    num_bytes: int = 0
    digest: str = ""
    rejects: Counter[str] = field(default_factory=Counter)
    """Rejected records by cause."""
    warnings: Counter[str] = field(default_factory=Counter)
    """Warnings by cause."""
    formats: Counter[str] = field(default_factory=Counter)
    """Images by suffix."""
    sizes: BoundedCounter = field(default_factory=BoundedCounter)
    """Images by ``WIDTHxHEIGHT``."""
    num_boxes: int = 0
    num_points: int = 0
    num_multi_image: int = 0
    """Samples of several images."""
    num_text_only: int = 0
    """Samples without images."""
    num_multi_box: int = 0
    """Samples of several boxes or points."""
    num_untokenised: int = 0
    """Images that the processor would refuse: beyond 200 to 1."""
    num_narrow_boxes: int = 0
    """Boxes of which a side is shorter than a token at the model's size."""
    num_tiny_boxes: int = 0
    """Boxes of which both sides are shorter than a token at the model's size."""
    width: Spread = field(default_factory=Spread)
    height: Spread = field(default_factory=Spread)
    aspect_ratio: Spread = field(default_factory=Spread)
    """Width / height."""
    image_bytes: Spread = field(default_factory=Spread)
    box_width: Spread = field(default_factory=Spread)
    box_height: Spread = field(default_factory=Spread)
    box_side: Spread = field(default_factory=Spread)
    """The shorter side of a box."""
    box_share: Spread = field(default_factory=Spread)
    """Area of a box / area of its image."""
    prompt_chars: Spread = field(default_factory=Spread)
    tokens: Spread = field(default_factory=Spread)
    """Visual tokens of an image."""
    centres: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((HEAT_CELLS, HEAT_CELLS), np.int64)
    )
    """Shape (32, 32): places by row (y) and column (x) of their centre, over the image's sides."""


def measure(
    store: Store,
    manifest: Manifest,
    rule: ResizeRule,
    on_progress: OnProgress = no_progress,
) -> Measures:
    """Reads every index and every JSON once.

    Args:
        store: Where the data set lies.
        manifest: Of that data set.
        rule: The processor's setting, for tokens.
        on_progress: Is told of every shard.

    Raises:
        StoreError: a shard or index is missing or cannot be read.
        ShardFormatError: one is damaged.
    """
    found = Measures(
        rule,
        num_samples=manifest.num_samples,
        num_shards=len(manifest.shards),
        num_bytes=sum(shard.num_bytes for shard in manifest.shards),
        digest=manifest.digest,
        rejects=Counter(manifest.rejects),
        warnings=_count_warnings(store),
    )
    targets = lru_cache(maxsize=4096)(rule.target)
    for info in manifest.shards:
        index = ShardIndex.load(store, info)
        _add_images(found, index, targets)
        _add_metas(found, store, info, index, targets)
        on_progress(info.num_samples, info.num_bytes)
    return found


def _add_images(found: Measures, index: ShardIndex, targets: Callable[[Size], Size]) -> None:
    images = index.parts[index.parts["width"] > 0]
    for kind, count in zip(*np.unique(images["kind"], return_counts=True), strict=True):
        found.formats[_KINDS[int(kind)]] += int(count)
    widths, heights = images["width"].astype(np.int64), images["height"].astype(np.int64)
    found.width.add(widths)
    found.height.add(heights)
    found.aspect_ratio.add(widths / heights)
    found.image_bytes.add(images["num_bytes"])
    pairs, counts = np.unique(np.stack([widths, heights], 1), axis=0, return_counts=True)
    for (width, height), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        found.sizes.add(f"{width}x{height}", count)
        try:
            target = targets(Size(width, height))
        except ImageError:
            found.num_untokenised += count
            continue
        area = target.width * target.height
        found.tokens.add(np.full(count, area // found.rule.multiple**2))


def _add_metas(
    found: Measures,
    store: Store,
    info: ShardInfo,
    index: ShardIndex,
    targets: Callable[[Size], Size],
) -> None:
    prompt_chars: list[int] = []
    rows: list[tuple[float, ...]] = []  # x1, y1, x2, y2, image's sides, its sides for the model
    for meta in iter_metas(store, info, index):
        sample = as_sample(meta)
        prompt_chars.append(len(sample.prompt))
        solutions, sizes = sample.solutions, sample.sizes
        found.num_multi_image += len(sizes) > 1
        found.num_multi_box += len(solutions) > 1
        found.num_text_only += not sizes
        for lies_in, numbers in zip(sample.solution_images, solutions, strict=True):
            size = sizes[lies_in]
            shape = read_shape(numbers)
            ends = numbers * 2 if isinstance(shape, Point) else shape_numbers(bounds_of(shape))
            rows.append((*ends, *size, *_model_sides(size, targets)))
    found.prompt_chars.add(prompt_chars)
    _add_places(found, np.array(rows, np.float64).reshape(-1, 8))


def _add_places(found: Measures, rows: NDArray[np.float64]) -> None:
    """Adds rows of (x1, y1, x2, y2, width, height, model width, model height)."""
    size, model_size = rows[:, 4:6], rows[:, 6:8]
    centres = (rows[:, :2] + rows[:, 2:4]) / 2 / size
    cells = np.clip(np.floor(centres * HEAT_CELLS), 0, HEAT_CELLS - 1).astype(np.int64)
    np.add.at(found.centres, (cells[:, 1], cells[:, 0]), 1)
    sides = rows[:, 2:4] - rows[:, :2]
    is_box = (sides > 0).all(axis=1)
    found.num_boxes += int(is_box.sum())
    found.num_points += int((~is_box).sum())
    sides, size, model_size = sides[is_box], size[is_box], model_size[is_box]
    found.box_width.add(sides[:, 0])
    found.box_height.add(sides[:, 1])
    found.box_side.add(sides.min(axis=1))
    found.box_share.add(np.prod(sides / size, axis=1))
    is_short = sides * model_size / size < found.rule.multiple
    found.num_narrow_boxes += int(is_short.any(axis=1).sum())
    found.num_tiny_boxes += int(is_short.all(axis=1).sum())


def _model_sides(size: Size, targets: Callable[[Size], Size]) -> Size:
    try:
        return targets(size)
    except ImageError:
        return size  # counted among the images; its boxes are measured as they are


def _count_warnings(store: Store) -> Counter[str]:
    counts: Counter[str] = Counter()
    if store.exists(WARNINGS_NAME):
        with store.open_stream(WARNINGS_NAME) as file:
            counts.update(cause for cause in map(_cause, file) if cause)
    return counts


def _cause(line: bytes) -> str:
    try:
        return str(json.loads(line)["cause"])
    except (ValueError, KeyError, TypeError):
        return "unreadable_line"
