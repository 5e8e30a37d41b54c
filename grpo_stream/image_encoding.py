"""Upright RGB pixels to JPEG, PNG or WebP bytes: the same bytes every time on one machine."""

import io
from dataclasses import dataclass
from typing import Literal

import PIL
from PIL import Image

from grpo_stream.errors import ConfigError
from grpo_stream.images import Pixels

try:  # the fast JPEG encoder is an extra
    import simplejpeg
except ImportError:  # pragma: no cover
    simplejpeg = None

EncodingKind = Literal["keep", "jpeg", "webp", "png"]

_DEFAULT_QUALITY = {"jpeg": 90, "webp": 80}
_EXPECTED = "must be keep, png, jpeg, webp, or a quality of 1 to 100 as in jpeg:90 and webp:80"


@dataclass(frozen=True)
class Encoding:
    """How a picture is stored."""

    kind: EncodingKind = "keep"
    """``keep``: the file's own bytes where nothing has to be changed, else its own format."""
    quality: int | None = None
    """1 to 100 for ``jpeg`` and ``webp``, None for the others."""

    def __str__(self) -> str:
        return self.kind if self.quality is None else f"{self.kind}:{self.quality}"


def parse_encoding(text: str, field: str = "--reencode") -> Encoding:
    """Reads ``keep``, ``png``, ``jpeg``, ``jpeg:90``, ``webp`` or ``webp:80``.

    Args:
        text: What the user wrote.
        field: The setting's name, for the error.

    Raises:
        ConfigError: anything else.
    """
    kind, colon, number = text.partition(":")
    if kind == "keep" and not colon:
        return Encoding("keep")
    if kind == "png" and not colon:
        return Encoding("png")
    is_quality = number.isascii() and number.isdigit() and len(number) < 4
    quality = int(number) if is_quality else _DEFAULT_QUALITY.get(kind, 0) if not colon else 0
    if 1 <= quality <= 100:
        if kind == "jpeg":
            return Encoding("jpeg", quality)
        if kind == "webp":
            return Encoding("webp", quality)
    raise ConfigError(field, text, _EXPECTED)


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """``pixels`` as baseline JPEG without chroma subsampling, for text and thin lines.

    simplejpeg encodes where it is installed, else Pillow. Both are libjpeg-turbo, but their
    bytes may differ: build one data set with one of them.

    Args:
        pixels: uint8, shape (height, width, 3), RGB.
        quality: 1 to 100.
    """
    if simplejpeg is not None:
        data = simplejpeg.encode_jpeg(
            pixels, quality=quality, colorspace="RGB", colorsubsampling="444"
        )
        return bytes(data)
    return _save(pixels, "JPEG", quality=quality, subsampling=0)


def encode_webp(pixels: Pixels, quality: int) -> bytes:
    """``pixels`` as lossy WebP of Pillow's default effort.

    Args:
        pixels: uint8, shape (height, width, 3), RGB.
        quality: 1 to 100.
    """
    return _save(pixels, "WEBP", quality=quality)


def encode_png(pixels: Pixels) -> bytes:
    """``pixels``, uint8 of shape (height, width, 3), as PNG."""
    return _save(pixels, "PNG")


def _save(pixels: Pixels, image_format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def codec_versions() -> dict[str, str | None]:
    """Versions of what encodes and decodes: other versions may give other bytes."""
    return {
        "pillow": PIL.__version__,
        "simplejpeg": None if simplejpeg is None else simplejpeg.__version__,
    }
