"""Small samples and data sets for tests."""

import io
from pathlib import Path

from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.shards.manifest import Manifest, ShardInfo
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.shards.store import LocalStore
from grpo_stream.shards.tar import ShardWriter


def image_bytes(size=(8, 6), colour="red", kind="PNG", mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def make_sample(key="000000_a", prompt="Click on the red circle", size=(8, 6), **extra):
    width, height = size
    meta = make_meta(prompt, (1, 2, width, height), Size(*size), Size(*size), extra)
    return Sample(key, image_bytes(size), "png", meta)


def write_shard(path: Path, samples) -> ShardInfo:
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.add(sample)
    return writer.close()


def write_set(folder: Path, samples, per_shard=2) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    shards = tuple(
        write_shard(folder / f"shard-{start:06d}.tar", samples[start : start + per_shard])
        for start in range(0, len(samples), per_shard)
    )
    manifest = Manifest(1, shards)
    manifest.save(LocalStore(folder))
    return manifest
