import numpy as np
import pytest

from grpo_stream import image_encoding
from grpo_stream.errors import ConfigError
from grpo_stream.image_encoding import (
    Encoding,
    encode_jpeg,
    encode_png,
    encode_webp,
    parse_encoding,
)
from grpo_stream.images import decode, probe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("keep", Encoding("keep")),
        ("png", Encoding("png")),
        ("jpeg", Encoding("jpeg", 90)),
        ("jpeg:1", Encoding("jpeg", 1)),
        ("webp", Encoding("webp", 80)),
        ("webp:100", Encoding("webp", 100)),
    ],
)
def test_parse(text, expected):
    assert parse_encoding(text) == expected
    assert parse_encoding(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "jpg", "jpeg:", "jpeg:0", "jpeg:101", "jpeg:-1", "jpeg:9.5", "jpeg:²", "keep:1", "png:9"],
)
def test_parse_names_what_works(text):
    with pytest.raises(ConfigError, match=r"--reencode=.*jpeg:90") as caught:
        parse_encoding(text)
    assert caught.value.value == text


def smooth(width=90, height=70):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("has_fast_encoder", [True, False])
@pytest.mark.parametrize(
    ("encode", "image_format", "tolerance"),
    [
        (lambda pixels: encode_jpeg(pixels, 95), "JPEG", 8),
        (lambda pixels: encode_webp(pixels, 95), "WEBP", 16),
        (encode_png, "PNG", 0),
    ],
)
def test_encoders(encode, image_format, tolerance, has_fast_encoder, monkeypatch):
    if not has_fast_encoder:
        monkeypatch.setattr(image_encoding, "simplejpeg", None)
    pixels = smooth()
    data = encode(pixels)
    assert data == encode(pixels)
    assert probe(data).format == image_format
    assert probe(data).is_plain
    assert np.abs(decode(data).astype(int) - pixels).max() <= tolerance


def test_jpeg_keeps_colours_sharp():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, ::2] = (255, 0, 0)  # subsampled chroma would smear these lines
    assert np.abs(decode(encode_jpeg(pixels, 95)).astype(int) - pixels).max() < 40


def test_quality_counts():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert len(encode_jpeg(noise, 30)) < len(encode_jpeg(noise, 90))
    assert len(encode_webp(noise, 30)) < len(encode_webp(noise, 90))
