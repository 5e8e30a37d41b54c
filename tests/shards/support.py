"""Small samples and data sets for tests."""

import io
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.shards.index import ShardIndex, index_name
from grpo_stream.shards.manifest import MANIFEST_VERSION, Manifest, ShardInfo
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.shards.tar import ShardWriter
from grpo_stream.storage.store import LocalStore


def image_bytes(size=(8, 6), colour="red", kind="PNG", mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def make_sample(key="000000_a", prompt="Click on the red circle", size=(8, 6), **extra):
    width, height = size
    meta = make_meta(prompt, (1, 2, width, height), Size(*size), Size(*size), extra)
    return Sample(key, image_bytes(size), "png", meta)


def make_multi_sample(key="000009_m", boxes=((0, 0, 8, 6), (1, 1)), lies_in=(0, 1), **extra):
    """A sample of three images and, by default, a box in the first and a point in the second."""
    more_sizes = ((Size(4, 2), Size(8, 4)), (Size(5, 7), Size(5, 7)))
    meta = make_meta("Find", boxes, Size(8, 6), Size(8, 6), extra, more_sizes, lies_in)
    more = (("jpg", image_bytes((4, 2), kind="JPEG")), ("webp", image_bytes((5, 7), kind="WEBP")))
    return Sample(key, image_bytes(), "png", meta, more)


def make_text_sample(key="000010_t", prompt="What is 2 + 3?", **extra):
    """A sample without images."""
    return Sample(key, b"", "", make_meta(prompt, (), None, None, extra))


def tar_of(members, fmt=tarfile.PAX_FORMAT) -> bytes:
    """A tar as anybody's tools write it, of (name, content) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_shard(path: Path, samples) -> ShardInfo:
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.add(sample)
    return writer.close()


def make_older(folder: Path) -> Manifest:
    """Rewrites a set as the first version wrote it: no check value ties its files together."""
    store = LocalStore(folder)
    manifest = Manifest.load(store)
    for info in manifest.shards:
        data = bytearray(store.read(index_name(info.name)))
        del data[48:80], data[-4:]
        data[8:12] = (2).to_bytes(4, "little")
        store.write(index_name(info.name), bytes(data + zlib.crc32(data).to_bytes(4, "little")))
        ShardIndex.load(store, replace(info, index_crc32=None))
    shards = tuple(replace(info, index_crc32=None) for info in manifest.shards)
    older = replace(manifest, version=1, shards=shards)
    older.save(store)
    return older


def write_set(folder: Path, samples, per_shard=2) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    shards = tuple(
        write_shard(folder / f"shard-{start:06d}.tar", samples[start : start + per_shard])
        for start in range(0, len(samples), per_shard)
    )
    manifest = Manifest(MANIFEST_VERSION, shards)
    manifest.save(LocalStore(folder))
    return manifest
