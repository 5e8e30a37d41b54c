"""From a record's image path to the bytes that go into the shard."""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

from grpo_stream.boxes import Size
from grpo_stream.encoding import encode_png
from grpo_stream.errors import RecordError
from grpo_stream.images import SUFFIXES, ImageLimits, decode, probe

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_SUFFIX_OF_NAME = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF"}


@dataclass(frozen=True)
class Picture:
    """An image that was decoded once and can be stored."""

    data: bytes
    """The file's own bytes, or a PNG of the upright RGB pixels."""
    suffix: str
    size: Size
    """Upright size in pixels, of the file and of what is stored."""
    warnings: tuple[tuple[str, str], ...]
    """Pairs (cause, detail)."""


def find_image(path: str, images_root: Path) -> Path:
    """The file that a record's relative path names, inside ``images_root``.

    Raises:
        RecordError: causes ``image_path_empty``, ``image_path_url``, ``image_path_absolute``,
            ``image_path_outside``, ``image_not_found``, ``image_not_file``.
    """
    if not path.strip():
        raise RecordError("image_path_empty", f"{path!r}")
    if _URL.match(path):
        raise RecordError("image_path_url", f"{path[:200]!r}: nothing is fetched, give a file")
    if path.startswith(("/", "\\", "~")):
        raise RecordError("image_path_absolute", f"{path[:200]!r} is not relative to images-root")
    inside = posixpath.normpath(path)
    if inside == ".." or inside.startswith("../"):
        raise RecordError("image_path_outside", f"{path[:200]!r} leaves images-root")
    file = images_root / inside
    try:
        if not file.exists():
            raise RecordError("image_not_found", f"{path[:200]!r} is not in images-root")
        if not file.is_file():
            raise RecordError("image_not_file", f"{path[:200]!r} is a folder or a device")
    except (OSError, ValueError) as error:  # too long, or letters that no file name can have
        raise RecordError("image_not_found", f"{path[:200]!r}: {error}") from error
    return file


def load_picture(file: Path, limits: ImageLimits) -> Picture:
    """Reads and fully decodes an image, so that nothing unreadable gets into a shard.

    Plain JPEG, PNG and WebP keep their own bytes; what is rotated by EXIF, has transparency,
    frames or another colour space, or is of another format becomes an upright RGB PNG.

    Raises:
        RecordError: cause ``image_not_read`` for a file that cannot be read.
        ImageError: the causes of :func:`grpo_stream.images.decode`.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RecordError("image_not_read", f"{file.name}: {error.strerror}") from error
    info = probe(data, limits)
    pixels = decode(data, limits)
    warnings = []
    if info.num_frames > 1:
        detail = f"{info.num_frames} frames, the first one is used"
        warnings.append(("image_animated", detail))
    by_name = _SUFFIX_OF_NAME.get(file.suffix.lower(), info.format)
    if by_name != info.format:
        detail = f"{file.name} holds {info.format}: the content decides"
        warnings.append(("image_suffix", detail))
    if info.is_plain and info.format in SUFFIXES:
        stored, suffix = data, SUFFIXES[info.format]
    else:
        stored, suffix = encode_png(pixels), "png"
    return Picture(stored, suffix, info.size, tuple(warnings))
