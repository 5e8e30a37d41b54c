"""The fast reader against Pillow: equal wherever it answers."""

import io
import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from grpo_stream.boxes import Size
from grpo_stream.errors import ImageError
from grpo_stream.image_headers import ImageInfo, has_end, read_header
from grpo_stream.images import ImageLimits, _info, _open

SCREENSHOTS = sorted((Path(__file__).parents[1] / "data/screenshots/pages").iterdir())
NO_LIMITS = ImageLimits(max_image_pixels=10**18, min_side=1, max_aspect_ratio=1e9)


def by_pillow(data):
    """What Pillow says, or None where it refuses the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(data, NO_LIMITS) as image:
                return _info(image)
    except ImageError:
        return None


def picture(mode="RGB", size=(23, 17)):
    noise = Image.effect_noise(size, 60)
    return noise.convert(mode) if mode == "I;16" else noise.convert("RGB").convert(mode)


def encoded(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    picture(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation, **others):
    block = Image.Exif()
    block[0x0112] = orientation
    for tag, value in others.items():
        block[int(tag[1:], 16)] = value
    return block.tobytes()


def png_text(key, value):
    info = PngImagePlugin.PngInfo()
    info.add_text(key, value)
    return info


ANSWERED = {
    **{f"jpeg {mode}": encoded("JPEG", mode) for mode in ("L", "RGB", "CMYK")},
    "jpeg progressive": encoded("JPEG", progressive=True),
    "jpeg comment": encoded("JPEG", comment=b"hello", dpi=(72, 72)),
    "jpeg profile in two parts": encoded("JPEG", icc_profile=bytes(70_000)),
    "jpeg xmp": encoded("JPEG", xmp=b"<x/>"),
    **{f"jpeg exif {n}": encoded("JPEG", exif=exif(n)) for n in range(10)},
    "jpeg exif with more": encoded("JPEG", exif=exif(8, x010e="a long description", x010f="me")),
    **{
        f"png {mode}": encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    },
    "png exif": encoded("PNG", exif=exif(6), dpi=(72, 72), icc_profile=b"abc" * 100),
    "png one transparent colour": encoded("PNG", transparency=(1, 2, 3)),
    "png one transparent grey": encoded("PNG", "L", transparency=1),
    "png text": encoded("PNG", pnginfo=png_text("Software", "a browser")),
    "webp lossy": encoded("WEBP"),
    "webp lossless": encoded("WEBP", lossless=True),
    "webp lossy profile": encoded("WEBP", icc_profile=b"abc"),
    "webp exif": encoded("WEBP", exif=exif(6)),
    "webp lossless exif": encoded("WEBP", exif=exif(3), lossless=True),
    "webp without alpha after all": encoded("WEBP", "RGBA"),
}
LEFT_TO_PILLOW = {
    "jpeg orientation in xmp": encoded("JPEG", xmp=b'<a tiff:Orientation="6">'),
    "png animated": encoded("PNG", save_all=True, append_images=[picture().rotate(90)]),
    "png text that pillow takes for a chunk": encoded("PNG", pnginfo=png_text("transparency", "x")),
    "webp animated": encoded("WEBP", save_all=True, append_images=[picture().rotate(90)]),
    "webp xmp": encoded("WEBP", xmp=b"<x/>"),
    "several pictures in one jpeg": encoded("MPO", save_all=True, append_images=[picture()]),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "text": b"<html>",
    "nothing": b"",
}


@pytest.mark.parametrize("name", ANSWERED)
def test_answers(name):
    assert read_header(ANSWERED[name]) == by_pillow(ANSWERED[name]) is not None


@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_leaves_to_pillow(name):
    assert read_header(LEFT_TO_PILLOW[name]) is None


@pytest.mark.parametrize("path", SCREENSHOTS, ids=lambda path: path.name)
def test_screenshots(path):
    data = path.read_bytes()
    assert read_header(data) == by_pillow(data) is not None
    assert has_end(data, by_pillow(data).format)


def test_what_it_says():
    assert read_header(ANSWERED["jpeg RGB"]) == ImageInfo("JPEG", Size(23, 17), True, 1)
    assert read_header(ANSWERED["jpeg exif 6"]) == ImageInfo("JPEG", Size(17, 23), False, 1)
    assert read_header(ANSWERED["png RGBA"]) == ImageInfo("PNG", Size(23, 17), False, 1)


ALL = [*ANSWERED.values(), *LEFT_TO_PILLOW.values()]


@settings(max_examples=300)
@given(st.sampled_from(ALL), st.randoms(use_true_random=False))
def test_damaged_files_never_raise_nor_contradict_pillow(data, rng):
    damaged = damage(data, rng)
    info = read_header(damaged)
    for image_format in ("JPEG", "PNG", "WEBP", "GIF"):
        has_end(damaged, image_format)
    if info is not None:
        assert by_pillow(damaged) in (info, None)


def damage(data, rng: random.Random):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(min(len(data), rng.choice([32, 200, 10**6])) or 1)
        kind = rng.choice(["set", "set", "set", "drop", "add", "cut"])
        if kind == "set" and data:
            data[at] = rng.choice([0, 1, 255, rng.randrange(256)])
        elif kind == "drop":
            del data[at : at + rng.choice([1, 2, 12])]
        elif kind == "add":
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 2, 12])))
        elif kind == "cut":
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize(
    ("image_format", "data"),
    [
        ("JPEG", ANSWERED["jpeg RGB"]),
        ("JPEG", ANSWERED["jpeg progressive"]),
        ("PNG", ANSWERED["png RGB"]),
        ("WEBP", ANSWERED["webp lossy"]),
        ("WEBP", ANSWERED["webp exif"]),
    ],
)
def test_a_file_cut_short_has_no_end(image_format, data):
    assert has_end(data, image_format)
    assert has_end(data + b"\0\0padding of a camera", image_format)
    assert not any(has_end(data[:length], image_format) for length in range(len(data)))


def test_the_end_of_a_thumbnail_is_not_the_end_of_its_picture():
    thumbnail = ANSWERED["jpeg L"]
    data = encoded("JPEG", exif=exif(1) + thumbnail)
    behind = data.index(thumbnail) + len(thumbnail)
    assert has_end(data, "JPEG")
    assert not any(has_end(data[:length], "JPEG") for length in range(behind + 1, len(data)))


def test_formats_without_an_end_marker():
    assert has_end(b"GIF89a", "GIF")
