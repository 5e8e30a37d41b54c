"""Bytes to upright RGB pixels, within limits, and the one resize of the project.

Building, training, rollout and evaluation all resize here, so that an image is resized at most
once between its file and the model.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, ImageError
from grpo_stream.flags import setting
from grpo_stream.image_headers import MAX_SCANS, ImageInfo, has_many_scans, read_header

try:  # the fast JPEG decoder is an extra; its pixels equal Pillow's (tested)
    import simplejpeg
except ImportError:  # pragma: no cover
    simplejpeg = None

Pixels = NDArray[np.uint8]
"""An image in memory: uint8, shape (height, width, 3), RGB, upright."""

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Pillow's format name -> member suffix, for the formats that are stored as they are."""

_FORMATS = (*SUFFIXES, "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
"""What is taken; of these Pillow may have been built without the last two."""
_TURNED_BY_PILLOW = ("TIFF",)  # Pillow 11: TiffImagePlugin._setup, load_end
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes the stored pixels upright
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_MAX_MULTIPLE = 1_000
_MAX_FRAMES = 500  # that are counted in a TIFF
_MAX_WORDS = 300  # of a decoder's own message
_MAX_ASPECT_RATIO = 200  # transformers 5.23, qwen2_vl.smart_resize


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be at most, checked on its header before anything is decoded.

    Raises:
        ConfigError: no image could have so few pixels.
    """

    max_image_pixels: int = setting(
        100_000_000,
        "Larger images (width x height, as they are stored) are bad and never decoded: "
        "decompression bombs.",
    )
    min_side: int = 2
    """Smallest width and height in pixels."""
    max_aspect_ratio: float = _MAX_ASPECT_RATIO
    """Largest ratio of the longer to the shorter side."""

    def __post_init__(self) -> None:
        if self.max_image_pixels < 1:
            expected = "must be at least 1, for example 100000000"
            raise ConfigError("max_image_pixels", self.max_image_pixels, expected)


DEFAULT_LIMITS = ImageLimits()


def probe(data: bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS) -> ImageInfo:
    """Reads an image's header and checks it against ``limits``; decodes nothing.

    Raises:
        ImageError: causes ``image_empty``, ``image_unreadable``, ``image_too_large``,
            ``image_too_small``, ``image_aspect_ratio``, ``image_too_many_scans``.
    """
    data = bytes(data)
    info = read_header(data)
    if info is not None:
        _check_limits(info.size, limits)
        return info
    with _open(data, limits) as image, _one_error("image_unreadable", f"{image.format} header"):
        return _info(image)


def decode(
    data: bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS, info: ImageInfo | None = None
) -> Pixels:
    """Decodes an image to upright RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to
    8 bits, CMYK, palette and grey become RGB, and of an animation the first frame is taken.

    Args:
        data: The whole file.
        limits: Checked before anything is decoded.
        info: What :func:`probe` said of ``data`` with these limits, to save asking it again.

    Returns:
        uint8 array of shape (height, width, 3).

    Raises:
        ImageError: as :func:`probe`, and ``image_truncated`` for damaged pixel data.
    """
    data = bytes(data)
    pixels = _decode_plain_jpeg(data, info or probe(data, limits))
    if pixels is not None:
        return pixels
    with _load(data, limits) as image, _one_error("image_truncated", f"{image.format} pixel data"):
        upright = _UPRIGHT.get(_orientation(image))
        return np.asarray(_to_rgb(image if upright is None else image.transpose(upright)))


def check_pixels(data: bytes, limits: ImageLimits, info: ImageInfo) -> None:
    """Decodes an image as :func:`decode` does, but only to see whether that works.

    Args:
        data: The whole file.
        limits: As :func:`probe` was given them.
        info: What :func:`probe` said of ``data``.

    Raises:
        ImageError: as :func:`decode`.
    """
    if _decode_plain_jpeg(data, info) is None:
        _load(data, limits).close()


@dataclass(frozen=True)
class ResizeRule:
    """The target size that a Qwen-VL image processor would choose.

    Source: ``smart_resize`` of transformers 5.23 (models/qwen2_vl), restated so that data at rest
    and in motion need no transformers; a test compares the two.
    """

    multiple: int = 28
    """Both sides become multiples of this: patch_size x merge_size of the processor."""
    min_pixels: int = 56 * 56
    """Smallest area in pixels after resizing."""
    max_pixels: int = 28 * 28 * 1280
    """Largest area in pixels after resizing; one visual token covers multiple x multiple."""

    def __post_init__(self) -> None:
        if not 1 <= self.multiple <= _MAX_MULTIPLE:
            expected = f"must be 1 to {_MAX_MULTIPLE}, for example 28"
            raise ConfigError("multiple", self.multiple, expected)
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ConfigError(
                "max_pixels",
                self.max_pixels,
                f"must be at least min_pixels={self.min_pixels}, for example {28 * 28 * 1280}",
            )
        if self.max_pixels < self.multiple**2:
            expected = f"must hold {self.multiple} x {self.multiple}, for example {28 * 28 * 1280}"
            raise ConfigError("max_pixels", self.max_pixels, expected)
        if self.min_pixels > DEFAULT_LIMITS.max_image_pixels:  # smaller images grow to it
            expected = f"must be at most {DEFAULT_LIMITS.max_image_pixels}, for example {56 * 56}"
            raise ConfigError("min_pixels", self.min_pixels, expected)

    def target(self, size: Size) -> Size:
        """The size that an image of ``size`` is resized to.

        Raises:
            ImageError: the aspect ratio is beyond 200, as the processor itself refuses it.
        """
        width, height = size
        if max(size) / min(size) > _MAX_ASPECT_RATIO:
            raise ImageError("image_aspect_ratio", f"{width}x{height}: beyond 200 to 1")
        step = self.multiple
        new_height = round(height / step) * step
        new_width = round(width / step) * step
        if new_height * new_width > self.max_pixels:
            beta = math.sqrt((height * width) / self.max_pixels)
            new_height = max(step, math.floor(height / beta / step) * step)
            new_width = max(step, math.floor(width / beta / step) * step)
        elif new_height * new_width < self.min_pixels:
            beta = math.sqrt(self.min_pixels / (height * width))
            new_height = math.ceil(height * beta / step) * step
            new_width = math.ceil(width * beta / step) * step
        return Size(new_width, new_height)


def resize(pixels: Pixels, size: Size) -> Pixels:
    """The project's one resize: bicubic with antialiasing, as Qwen's processors do it in Pillow.

    Args:
        pixels: uint8, shape (height, width, 3).
        size: Target size; the same array is returned when nothing is to be done.
    """
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    image = Image.fromarray(pixels).resize((size.width, size.height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _decode_plain_jpeg(data: bytes, info: ImageInfo) -> Pixels | None:
    if simplejpeg is None or info.format != "JPEG" or not info.is_plain:
        return None
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged or unusual: Pillow decides, with its own message
        return None


def _load(data: bytes, limits: ImageLimits) -> Image.Image:
    image = _open(data, limits)
    with _one_error("image_truncated", f"{image.format} pixel data"):
        image.load()
    return image


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    if not data:
        raise ImageError("image_empty", "0 bytes")
    try:
        with _one_error("image_unreadable", "header"), warnings.catch_warnings():
            # Pillow's own bomb limit is replaced by ours, which is checked just below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_known_formats())
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError("image_unreadable", _why_unreadable(data)) from error
    _check_limits(Size(*image.size), limits)
    if image.format == "JPEG" and has_many_scans(data):
        detail = f"a JPEG of more than {MAX_SCANS} scans takes minutes to decode"
        raise ImageError("image_too_many_scans", detail)
    return image


@contextmanager
def _one_error(cause: str, what: str) -> Iterator[None]:
    """Whatever a decoder throws at damaged bytes becomes an ImageError of this cause.

    Pillow's plug-ins raise IndexError, struct.error, AssertionError, TypeError and others; what
    names its cause already, and a machine without memory, pass.
    """
    try:
        yield
    except (ImageError, MemoryError, UnidentifiedImageError, Image.DecompressionBombError):
        raise
    except Exception as error:
        words = str(error) or type(error).__name__
        raise ImageError(cause, f"{what}: {words[:_MAX_WORDS]}") from error


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _why_unreadable(data: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name = Image.open(io.BytesIO(data)).format
    except Exception:  # noqa: BLE001 - whatever its plugins raise
        return "not an image that Pillow knows"
    if name in _FORMATS:
        return f"damaged, or not quite {name}"
    taken = ", ".join(_known_formats())
    return f"{name} is not taken, {taken} are: convert it, for example to PNG"


def _check_limits(size: Size, limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_image_pixels:
        detail = f"{width}x{height} is more than max_image_pixels={limits.max_image_pixels}"
        raise ImageError("image_too_large", detail)
    if min(width, height) < limits.min_side:
        raise ImageError("image_too_small", f"{width}x{height}: a side below {limits.min_side}")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        detail = f"{width}x{height}: beyond {limits.max_aspect_ratio:g} to 1"
        raise ImageError("image_aspect_ratio", detail)


def _info(image: Image.Image) -> ImageInfo:
    orientation = _orientation(image)
    width, height = image.size
    if image.format == "TIFF" and image.getexif().get(_EXIF_ORIENTATION) in _SWAPPED:
        # As the file stores it, not as Pillow's version turns it before or after loading.
        height, width = (int(image.getexif().get(tag, 0)) for tag in (0x0100, 0x0101))
    num_frames = _num_frames(image)
    if orientation in _SWAPPED:
        width, height = height, width
    is_plain = (
        image.mode in ("RGB", "L")
        and orientation not in _UPRIGHT
        and num_frames == 1
        and "transparency" not in image.info
    )
    return ImageInfo(str(image.format), Size(width, height), is_plain, num_frames)


def _num_frames(image: Image.Image) -> int:
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    # Pillow's own count takes time by the square of the number.
    num_frames = 1
    with suppress(EOFError):
        while num_frames < _MAX_FRAMES:
            image.seek(num_frames)
            num_frames += 1
    image.seek(0)
    return num_frames


def _orientation(image: Image.Image) -> int:
    if image.format in _TURNED_BY_PILLOW:
        return 1
    try:
        if image.format != "PNG":
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
        # Pillow's getexif() decodes a whole PNG to look for EXIF behind the pixels, where the
        # PNG specification does not allow it.
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        return int(exif.get(_EXIF_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged EXIF says nothing; the pixels stand as they are
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips to white instead of scaling.
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
