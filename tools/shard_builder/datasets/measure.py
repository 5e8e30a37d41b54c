"""What is in a data set, in numbers: one pass over indexes and JSON, no image is decoded."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_stream.boxes import Point, Size
from grpo_stream.errors import ImageError
from grpo_stream.images import ResizeRule
from grpo_stream.shards.index import PART_KINDS, ShardIndex
from grpo_stream.shards.linked_sets import open_set
from grpo_stream.shards.manifest import Manifest, ShardInfo
from grpo_stream.storage.store import Store
from grpo_stream.targets import bounds_of, read_shape, shape_numbers
from shard_builder.build.output.reject_lists import WARNINGS_NAME
from shard_builder.datasets.read_json_members import as_sample, iter_metas
from shard_builder.datasets.scan_shards import OnProgress, no_progress
from shard_builder.passes.manifest_pass import ManifestPass
from shard_builder.passes.measures import HEAT_CELLS, Measures
from shard_builder.passes.run_pass import PassSettings, run_pass

__all__ = ["HEAT_CELLS", "Measures", "StatsPass", "measure"]

_KINDS = {PART_KINDS.index(kind): kind for kind in ("jpg", "png", "webp")}


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
    found = run_pass(StatsPass(store, manifest, rule), PassSettings(), on_progress)
    assert isinstance(found, Measures)  # noqa: S101 - no part was asked for
    return found


class StatsPass(ManifestPass[Measures]):
    """:func:`measure` as a pass, of which parts may be done elsewhere."""

    command = "stats"

    def __init__(self, store: Store, manifest: Manifest, rule: ResizeRule) -> None:
        super().__init__(store, asdict(rule), manifest)
        self._rule = rule
        self._targets = lru_cache(maxsize=4096)(rule.target)

    @classmethod
    def opened(cls, url: str, settings: dict[str, Any]) -> "StatsPass":
        """See :meth:`ShardPass.opened`."""
        return cls(*open_set(url), ResizeRule(**settings))

    def look(
        self, number: int, should_stop: Callable[[], bool], on_progress: OnProgress
    ) -> Measures:
        """See :meth:`ShardPass.look`: the measures of one shard."""
        del should_stop
        found = Measures(self._rule)
        info = self._manifest.shards[number]
        index = ShardIndex.load(self.store, info)
        _add_images(found, index, self._targets)
        _add_metas(found, self.store, info, index, self._targets)
        on_progress(info.num_samples, info.num_bytes)
        return found

    def conclude(self, findings: Iterable[Measures]) -> Measures:
        """See :meth:`ShardPass.conclude`."""
        manifest = self._manifest
        found = Measures(
            self._rule,
            num_samples=manifest.num_samples,
            num_shards=len(manifest.shards),
            num_bytes=int(manifest.byte_counts.sum()),
            digest=manifest.digest,
            rejects=Counter(manifest.rejects),
            warnings=_count_warnings(self.store),
        )
        for one in findings:
            found.merge(one)
        return found

    def to_values(self, finding: Measures) -> dict[str, Any]:
        """See :meth:`ShardPass.to_values`."""
        return finding.to_values()

    def from_values(self, values: dict[str, Any]) -> Measures:
        """See :meth:`ShardPass.from_values`."""
        return Measures.from_values(self._rule, values)

    def result_to_values(self, result: Measures) -> dict[str, Any]:
        """See :meth:`ShardPass.result_to_values`."""
        return result.to_values()

    def result_from_values(self, values: dict[str, Any]) -> Measures:
        """See :meth:`ShardPass.result_from_values`."""
        return self.from_values(values)


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
