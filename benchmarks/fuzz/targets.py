"""What is fuzzed: sound files of a kind, what reads them, and the errors that may come out."""

import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.errors import (
    GrpoStreamError,
    ImageError,
    ManifestError,
    RecordError,
    ShardFormatError,
)
from grpo_stream.images import decode, probe
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.stored_image import Picture, PictureRules, make_picture
from grpo_stream.records.validate import judge
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample, make_meta, parse_meta
from grpo_stream.shards.tar import ShardWriter, iter_samples, parse_sample


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    seeds: tuple[bytes, ...]
    check: Callable[[bytes], object]
    """Reads it."""
    errors: tuple[type[GrpoStreamError], ...]
    """What it may raise; all else is a finding."""


def make_targets() -> dict[str, Target]:
    """The targets by name."""
    images = _images()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shard-000000.tar")
        with ShardWriter(path) as writer:
            for number, image in enumerate(images[:4]):
                writer.add(_sample(number, image))
        info = writer.close()
        tar, index = path.read_bytes(), path.with_name(f"{path.name}.index").read_bytes()
    manifest = Manifest(1, (info,), {"schema_version": 2}, "0", {"num_samples": 4}).to_json()
    entry = ShardIndex.from_bytes(index, info.name)[1]
    run = tar[entry.offset : entry.offset + entry.num_bytes]
    shard_errors = (ShardFormatError,)
    return {
        "image": Target(images, _read_image, (ImageError,)),
        "tar": Target((tar,), lambda d: list(iter_samples(io.BytesIO(d), "t.tar")), shard_errors),
        "sample": Target((run,), lambda d: parse_sample(d, "t.tar", entry), shard_errors),
        "index": Target((index,), _read_index, shard_errors),
        "manifest": Target((manifest,), _read_manifest, (ManifestError,)),
        "meta": Target((_meta(),), lambda d: parse_meta(d, "t.tar", images[0]), shard_errors),
        "record": Target(_records(), _judge, (RecordError, ImageError)),
    }


def _read_image(data: bytes) -> None:
    info = probe(data)
    height, width, _ = decode(data, info=info).shape
    if Size(width, height) != info.size:
        raise AssertionError(f"the header says {info.size}, the pixels are {width}x{height}")


def _read_index(data: bytes) -> None:
    index = ShardIndex.from_bytes(data, "t.tar")
    for number in range(len(index)):
        index[number]


def _read_manifest(data: bytes) -> None:
    manifest = Manifest.from_json(data)
    if Manifest.from_json(manifest.to_json()) != manifest:
        raise AssertionError("a manifest that was read is written as another one")


def _judge(data: bytes) -> None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return  # the readers of inputs refuse it
    verdict = judge(record, "000000000_a", Rules(), _load)
    parse_meta(verdict.encoded_meta, "written")


def _load(_: Any) -> Picture:
    return _PICTURE


def _images() -> tuple[bytes, ...]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 32, 3), np.uint8)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    frames = [Image.fromarray(np.roll(noise, n, 1)) for n in range(1, 4)]
    several: dict[str, Any] = {"save_all": True, "append_images": frames}
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, "JPEG", {}),
        (picture, "PNG", {}),
        (picture, "WEBP", {"lossless": True}),
        (picture, "JPEG", {"progressive": True, "exif": exif.tobytes()}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture.convert("P"), "PNG", {"transparency": 3}),
        (picture.convert("RGBA"), "PNG", {"exif": exif.tobytes()}),
        (Image.fromarray(rng.integers(0, 2**16, (8, 9), np.uint16)), "PNG", {}),
        (picture, "PNG", several),
        (picture.convert("RGBA"), "WEBP", {"exif": exif.tobytes()}),
        (picture, "WEBP", several),
        (picture, "GIF", {}),
        (picture, "GIF", several),
        (picture, "BMP", {}),
        (picture.convert("P"), "BMP", {}),
        (picture, "TIFF", {"exif": exif.tobytes()}),
        (picture, "TIFF", {"compression": "tiff_lzw"}),
        (picture, "TIFF", {"compression": "jpeg"}),
        (picture.convert("1"), "TIFF", {"compression": "group4"}),
        (picture, "TIFF", several),
    ]
    return tuple(_encoded(*kind) for kind in kinds)


def _encoded(picture: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _sample(number: int, image: bytes) -> Sample:
    size = probe(image).size
    suffix = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}[image[:2]]
    meta = make_meta(f"Click {number}", (1, 2, 9, 9), size, size, {"source": "fuzz"})
    return Sample(f"{number:09d}_a", image, suffix, meta)


def _meta() -> bytes:
    size = Size(32, 24)
    extra = {"tags": ["a", {"b": None}], "n": 1e9}
    return json.dumps(make_meta("Click", (1, 2, 9, 9), size, size, extra)).encode()


def _records() -> tuple[bytes, ...]:
    return tuple(
        json.dumps(record).encode()
        for record in (
            {"image": "a.jpg", "prompt": "Click", "solution": [1, 2, 9, 9]},
            {"image": "a.jpg", "prompt": "\u4e2d \ud83d\ude00 <image>", "solution": [[1, 2.5]]},
            {"image": ["a.jpg"], "prompt": "x", "solution": [1, 2], "width": 32, "height": 24},
        )
    )


_PICTURE = make_picture(_images()[0], "a.jpg", PictureRules())
