import io
import math
import struct

import numpy as np
import pytest
from PIL import Image, features

from grpo_stream import images
from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, ImageError
from grpo_stream.image_headers import ImageInfo
from grpo_stream.images import ImageLimits, ResizeRule, check_pixels, decode, probe, resize

RED = (254, 0, 0)  # what JPEG makes of it


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode, colour, size=(40, 30)):
    return Image.new(mode, size, colour)


def half_red(orientation):
    """Stored 40x30, red above and black below; upright as the orientation says."""
    image = flat("RGB", "black")
    image.paste("red", (0, 0, 40, 15))
    block = Image.Exif()
    block[0x0112] = orientation
    return encoded(image, "JPEG", exif=block.tobytes(), quality=95)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(flat("RGB", "red"), "JPEG"), RED),
        (encoded(flat("RGB", "red"), "JPEG", progressive=True), RED),
        (encoded(flat("L", 77), "JPEG"), (77, 77, 77)),
        (encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG"), RED),
        (encoded(flat("RGB", "red"), "PNG"), (255, 0, 0)),
        (encoded(flat("P", 3), "PNG"), None),
        (encoded(flat("1", 1), "PNG"), (255, 255, 255)),
        (encoded(flat("I;16", 0x80FF), "PNG"), (128, 128, 128)),
        (encoded(flat("RGBA", (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (encoded(flat("LA", (0, 128)), "PNG"), (127, 127, 127)),
        (encoded(flat("RGB", "red"), "PNG", transparency=(255, 0, 0)), (255, 255, 255)),
        (encoded(flat("RGB", "red"), "WEBP", lossless=True), (255, 0, 0)),
        (encoded(flat("RGB", "red"), "BMP"), (255, 0, 0)),
        (encoded(flat("RGB", "red"), "GIF"), (255, 0, 0)),
    ],
)
@pytest.mark.parametrize("has_fast_decoder", [True, False])
def test_decode_makes_upright_rgb(data, colour, has_fast_decoder, monkeypatch):
    if not has_fast_decoder:
        monkeypatch.setattr(images, "simplejpeg", None)
    pixels = decode(data)
    assert pixels.shape == (30, 40, 3)
    assert pixels.dtype == np.uint8
    assert probe(data).size == Size(40, 30)
    if colour is not None:
        assert np.abs(pixels.astype(int) - colour).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "AVIF"])
def test_every_format_is_turned_upright_once(kind, orientation):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    stored = Image.new("RGB", (40, 30), "blue")
    stored.paste("red", (0, 0, 40, 15))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif)
    upright = half_red(orientation)
    assert probe(data).size == probe(upright).size
    pixels, expected = decode(data), decode(upright)
    assert pixels.shape == expected.shape
    for x, y in ((3, 3), (-4, 3), (3, -4), (-4, -4)):
        assert (pixels[y, x, 0] > 128) == (expected[y, x, 0] > 128)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_formats_that_pillow_may_know(kind):
    if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]):
        pytest.skip(f"Pillow was built without {kind}")
    data = encoded(Image.new("RGB", (40, 30), "red"), kind)
    assert probe(data).size == (40, 30)
    assert decode(data)[15, 20, 0] > 200


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>", "not an image that Pillow knows"),
        (encoded(Image.new("RGB", (40, 30)), "PPM"), "PPM is not taken, JPEG, PNG"),
        (encoded(Image.new("RGB", (40, 30)), "ICO"), "ICO is not taken"),
    ],
)
def test_what_cannot_be_read_is_named(data, words):
    with pytest.raises(ImageError, match=f"image_unreadable: {words}"):
        probe(data)


@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [
        (1, (40, 30), (20, 3)),
        (3, (40, 30), (20, 26)),
        (4, (40, 30), (20, 26)),
        (5, (30, 40), (3, 20)),
        (6, (30, 40), (26, 20)),
        (8, (30, 40), (3, 20)),
    ],
)
def test_decode_turns_pictures_upright(orientation, size, red_at):
    data = half_red(orientation)
    pixels = decode(data)
    assert probe(data).size == (pixels.shape[1], pixels.shape[0]) == size
    assert pixels[red_at[1], red_at[0], 0] > 200
    assert probe(data).is_plain is (orientation == 1)


NOISE = Image.effect_noise((64, 64), 80).convert("RGB")


@pytest.mark.parametrize(
    ("data", "limits", "cause"),
    [
        (b"", ImageLimits(), "image_empty"),
        (b"<html>", ImageLimits(), "image_unreadable"),
        (encoded(NOISE, "JPEG")[:100], ImageLimits(), "image_unreadable"),
        (encoded(NOISE, "PNG"), ImageLimits(max_image_pixels=4095), "image_too_large"),
        (encoded(NOISE, "BMP"), ImageLimits(max_image_pixels=4095), "image_too_large"),
        (encoded(NOISE, "JPEG"), ImageLimits(min_side=65), "image_too_small"),
        (encoded(flat("RGB", 0, (402, 2)), "PNG"), ImageLimits(), "image_aspect_ratio"),
    ],
)
def test_what_is_refused_by_its_header(data, limits, cause):
    for look in (probe, decode):
        with pytest.raises(ImageError) as caught:
            look(data, limits)
        assert caught.value.cause == cause


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_pixels(kind):
    data = encoded(NOISE, kind)
    for cut in (data[: len(data) * 2 // 3], data[:-30]):
        with pytest.raises(ImageError, match="image_truncated"):
            decode(cut)
        with pytest.raises(ImageError, match="image_truncated"):
            check_pixels(cut, ImageLimits(), probe(cut))
    check_pixels(data, ImageLimits(), probe(data))


class TestResizeRule:
    @pytest.mark.parametrize(
        ("size", "target"),
        [
            ((56, 56), (56, 56)),
            ((100, 40), (112, 28)),
            ((1280, 720), (1288, 728)),
            ((4000, 3000), (1148, 840)),
            ((10, 10), (56, 56)),
        ],
    )
    def test_target(self, size, target):
        assert ResizeRule().target(Size(*size)) == target

    def test_targets_are_kept(self):
        rule = ResizeRule(multiple=32, min_pixels=32 * 32 * 4, max_pixels=32 * 32 * 64)
        for width in range(20, 700, 37):
            target = rule.target(Size(width, 200))
            assert rule.target(target) == target
            assert not any(side % 32 for side in target)
            assert rule.min_pixels <= math.prod(target) <= rule.max_pixels

    def test_settings_that_cannot_work(self):
        for multiple in (0, -28, 100_000):
            with pytest.raises(ConfigError, match="multiple="):
                ResizeRule(multiple=multiple)
        with pytest.raises(ConfigError, match="max_pixels=10: must be at least min_pixels"):
            ResizeRule(max_pixels=10)
        with pytest.raises(ConfigError, match="max_pixels=5000: must hold 100 x 100"):
            ResizeRule(multiple=100, max_pixels=5000)
        with pytest.raises(ConfigError, match="min_pixels=1000000000: must be at most"):
            ResizeRule(min_pixels=10**9, max_pixels=10**9)
        with pytest.raises(ImageError, match="image_aspect_ratio"):
            ResizeRule().target(Size(2001, 10))


def test_resize_returns_the_same_array_where_nothing_is_to_be_done():
    pixels = np.asarray(NOISE)
    assert resize(pixels, Size(64, 64)) is pixels
    assert resize(pixels, Size(32, 16)).shape == (16, 32, 3)


def animation(kind, **options):
    frames = [flat("P", number) for number in (1, 90, 180)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged tags
@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_an_animation_cut_anywhere_is_one_image_error(kind):
    data = animation(kind)
    outcomes = {outcome(data[:end]) for end in range(1, len(data), max(1, len(data) // 400))}
    assert outcomes <= {"read", "image_unreadable", "image_truncated"}
    assert outcomes & {"image_unreadable", "image_truncated"}


def outcome(data):
    try:
        decode(data)
    except ImageError as error:
        return error.cause
    return "read"


class Broken:
    """An image of Pillow's whose plug-in throws what Pillow does not promise."""

    def __init__(self, image, error):
        self.image, self.error = image, error

    def __getattr__(self, name):
        return getattr(self.image, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def load(self):
        raise self.error

    @property
    def n_frames(self):
        raise self.error


@pytest.mark.parametrize(
    "error", [IndexError("i"), struct.error("s"), AssertionError(), TypeError(), RuntimeError()]
)
@pytest.mark.parametrize(("action", "cause"), [(probe, "unreadable"), (decode, "truncated")])
def test_whatever_a_decoder_throws_is_an_image_error(monkeypatch, error, action, cause):
    data, info = encoded(flat("RGB", "red"), "BMP"), ImageInfo("BMP", Size(40, 30), False, 1)
    image = Image.open(io.BytesIO(data))
    monkeypatch.setattr(Image, "open", lambda *_, **__: Broken(image, error))
    with pytest.raises(ImageError, match=str(error) or type(error).__name__) as found:
        action(data, info=info) if action is decode else action(data)
    assert found.value.cause == f"image_{cause}"


def test_want_of_memory_is_no_image_error(monkeypatch):
    data = encoded(flat("RGB", "red"), "BMP")
    image = Image.open(io.BytesIO(data))
    monkeypatch.setattr(Image, "open", lambda *_, **__: Broken(image, MemoryError()))
    with pytest.raises(MemoryError):
        decode(data, info=ImageInfo("BMP", Size(40, 30), False, 1))


def with_scans(num_more):
    data = encoded(flat("RGB", "red", (400, 300)), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * num_more + data[last:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded():
    assert decode(with_scans(20)).shape == (300, 400, 3)
    for data in (with_scans(2000), with_scans(2000).replace(b"JFIF", b"JFIX")):
        with pytest.raises(ImageError, match="more than 100 scans"):
            probe(data)


def test_frames_of_a_tiff_are_counted_to_a_bound():
    frames = [flat("L", 1, (4, 4))] * 700
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert probe(data).num_frames == 500
    assert probe(animation("TIFF")).num_frames == 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_upright_as_its_header_says(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    data = encoded(flat("RGB", "red"), "TIFF", exif=block.tobytes())
    height, width, _ = decode(data).shape
    assert probe(data).size == (width, height) == ((40, 30) if orientation < 5 else (30, 40))
