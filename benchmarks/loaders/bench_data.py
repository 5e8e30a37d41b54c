"""The data that the loaders are timed with: screenshots as 1280x720 JPEGs, in shards."""

import argparse
import io
import json
from pathlib import Path

from PIL import Image

from benchmarks.build.build import SCREENSHOTS, copy_images
from grpo_stream.records.stored_image import PictureRules
from shard_builder.build.build import BuildSettings, build
from shard_builder.build.chunk_plan import ShardLimits

_QUALITY = 92


def make_shards(
    folder: Path, num_samples: int, samples_per_shard: int, size: tuple[int, int]
) -> Path:
    """Builds the shards, each sample with bytes of its own, and returns their folder.

    Shards that an earlier call made with the same numbers in the same ``folder`` are used again.

    Args:
        folder: Gets everything.
        num_samples: Copies of the screenshots, all different images in turn.
        samples_per_shard: Samples of each shard but the last.
        size: Width and height in pixels of every image.
    """
    name = f"{num_samples}_by_{samples_per_shard}_{size[0]}x{size[1]}"
    shards = folder / name / "shards"
    if (shards / "manifest.json").exists():
        return shards
    raw = folder / name / "raw"
    _resize_all(raw / "pages", size)
    args = argparse.Namespace(
        records=raw / "pages" / "records.json", images_root=raw / "pages", num_samples=num_samples
    )
    copy_images(args, raw)
    build(
        BuildSettings(
            inputs=(str(raw / "records.json"),),
            images_root=str(raw),
            out=str(shards),
            pictures=PictureRules(check="header"),
            limits=ShardLimits(max_samples=samples_per_shard),
        )
    )
    return shards


def _resize_all(folder: Path, size: tuple[int, int]) -> None:
    """Writes every screenshot as a JPEG of ``size``, and records whose boxes are in it."""
    folder.mkdir(parents=True, exist_ok=True)
    records = json.loads((SCREENSHOTS / "records.json").read_text())
    for record in records:
        path = folder / f"{Path(record['image']).stem}.jpg"
        if not path.exists():
            with Image.open(SCREENSHOTS / record["image"]) as image:
                buffer = io.BytesIO()
                image.convert("RGB").resize(size).save(buffer, "JPEG", quality=_QUALITY)
            path.write_bytes(buffer.getvalue())
        scale = (size[0] / record["width"], size[1] / record["height"])
        record["solution"] = [n * scale[i % 2] for i, n in enumerate(record["solution"])]
        record |= {"image": path.name, "width": size[0], "height": size[1]}
    (folder / "records.json").write_text(json.dumps(records))
