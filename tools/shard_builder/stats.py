"""What is in a data set: counts, image sizes, box areas, prompt lengths."""

import io
from collections import Counter

import numpy as np
from tqdm import tqdm

from grpo_stream.boxes import Box
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.store import Store
from grpo_stream.shards.tar import iter_samples

_NUM_SIZES = 10


def stats_table(store: Store, manifest: Manifest, *, quiet: bool) -> str:
    """A small table for people; reads every shard, decodes no image.

    Raises:
        StoreError: a shard is missing or cannot be read.
        ShardFormatError: a shard is damaged.
    """
    sizes: Counter[str] = Counter()
    suffixes: Counter[str] = Counter()
    shares: list[float] = []
    num_chars: list[int] = []
    num_image_bytes: list[int] = []
    bar = tqdm(total=manifest.num_samples, unit=" samples", disable=quiet, desc="stats")
    with bar:
        for info in manifest.shards:
            for sample in iter_samples(io.BytesIO(store.read(info.name)), info.name):
                width, height = sample.size
                sizes[f"{width}x{height}"] += 1
                suffixes[sample.image_suffix] += 1
                if len(sample.solution) == 4:
                    shares.append(100 * Box(*sample.solution).area / (width * height))
                num_chars.append(len(sample.prompt))
                num_image_bytes.append(len(sample.image))
                bar.update()
    rows = [
        ("samples", str(manifest.num_samples)),
        ("shards", str(len(manifest.shards))),
        ("bytes", str(sum(shard.num_bytes for shard in manifest.shards))),
        ("digest", manifest.digest),
        ("rejects", _counts(Counter(manifest.rejects)) or "none"),
        ("images", _counts(suffixes)),
        ("image sizes", _counts(sizes)),
        ("boxes, points", f"{len(shares)}, {manifest.num_samples - len(shares)}"),
        ("", "min / median / max"),
        ("box area, % of image", _spread(shares, ".3g")),
        ("prompt, characters", _spread(num_chars, ".0f")),
        ("image, bytes", _spread(num_image_bytes, ".0f")),
    ]
    return "\n".join(f"{name:<22}{value}" for name, value in rows)


def _counts(counter: Counter[str]) -> str:
    listed = [f"{name} ({count})" for name, count in counter.most_common(_NUM_SIZES)]
    rest = len(counter) - len(listed)
    return ", ".join(listed) + (f" and {rest} others" if rest else "")


def _spread(values: list[float] | list[int], spec: str) -> str:
    if not values:
        return "none"
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:{spec}} / {middle:{spec}} / {high:{spec}}"
