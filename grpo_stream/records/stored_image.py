"""From a record's image to the bytes that go into the shard."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from grpo_stream.boxes import Size
from grpo_stream.checksum import crc32
from grpo_stream.errors import ImageError, RecordError, StoreError
from grpo_stream.image_encoding import Encoding, encode_jpeg, encode_png, encode_webp
from grpo_stream.image_headers import ImageInfo, has_end
from grpo_stream.images import (
    SUFFIXES,
    ImageLimits,
    Pixels,
    ResizeRule,
    check_pixels,
    decode,
    probe,
    resize,
)
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.image_files import (
    check_image_path,
    folder_prefixes,
    other_spellings,
    read_image,
)
from grpo_stream.records.read_ahead import ReadAhead
from grpo_stream.storage.local_store import LocalStore
from grpo_stream.storage.store import open_store

Check = Literal["decode", "header"]

_FORMAT_OF_NAME = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF"}
_RESIZED_QUALITY = 95
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # in no name of an object store
_MAX_CACHED_BYTES = 8 * 2**20


@dataclass(frozen=True)
class PictureRules:
    """What a picture is checked for and how it is stored."""

    check: Check = "decode"
    """``decode``: every image is decoded once. ``header``: only format, size and end marker are
    looked at, unless the pixels are needed because the picture cannot be stored as it is."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    resize: ResizeRule | None = None
    """Resizes to the size that the model would be given; None keeps every size."""
    encoding: Encoding = field(default_factory=Encoding)
    """``keep`` stores the file's own bytes where they are upright RGB of the right size. Where
    they are not, a picture of its own size becomes PNG, and one that is resized stays in its
    family: JPEG (quality 95, no chroma subsampling), WebP (quality 95), all others PNG. Every
    other encoding is applied to every picture."""


class Picture(NamedTuple):
    """An image that was checked and can be stored."""

    data: bytes
    """What is stored: the file's own bytes, or the upright RGB pixels encoded again."""
    suffix: str
    size: Size
    """Size in pixels of what is stored."""
    original_size: Size
    """Upright size of the file in pixels."""
    crc32: int
    """CRC-32 of ``data``."""
    warnings: tuple[tuple[str, str], ...] = ()
    """Pairs (cause, detail)."""

    @property
    def fingerprint(self) -> int:
        """64 bits of length and CRC-32: equal for equal data, and hardly ever for others."""
        return (len(self.data) & 0xFFFFFFFF) << 32 | self.crc32


def make_picture(data: bytes, name: str, rules: PictureRules) -> Picture:
    """Checks an image and makes what is stored of it.

    Args:
        data: The whole file.
        name: What the record calls it, for messages.
        rules: What to check, and how to store it.

    Raises:
        ImageError: the causes of :func:`grpo_stream.images.decode`; ``image_truncated`` also for
            a file that does not reach its format's end marker.
    """
    info = probe(data, rules.limits)
    if not has_end(data, info.format):
        raise ImageError("image_truncated", f"{info.format} file without its end: it was cut short")
    size = info.size if rules.resize is None else rules.resize.target(info.size)
    suffix = SUFFIXES.get(info.format) if info.is_plain and size == info.size else None
    if suffix is not None and rules.encoding.kind == "keep":
        if rules.check == "decode":
            check_pixels(data, rules.limits, info)
        stored = data
    else:
        pixels = resize(decode(data, rules.limits, info), size)
        stored, suffix = _encode(pixels, _encoding(info, rules.encoding, size))
    return Picture(stored, suffix, size, info.size, crc32(stored), _warnings(info, name))


class ImageReader:
    """Opens the images of records, for one thread.

    Pictures that were made lately (up to 8 MiB of them) are kept, as records of one image often
    lie near each other. A folder's files are read directly; images in a bucket are read ahead by
    :meth:`prefetch`.

    Args:
        images_root: The folder or URL that image paths start from; nothing is read yet.
        rules: What to check, and how pictures are stored.

    Raises:
        ConfigError: a URL that cannot be opened.
    """

    def __init__(self, images_root: str, rules: PictureRules) -> None:
        self._rules = rules
        self._store = open_store(images_root)
        self._folder = str(self._store.folder) if isinstance(self._store, LocalStore) else None
        self._prefixes = () if self._folder is None else folder_prefixes(self._folder)
        self._ahead = None if self._folder is not None else ReadAhead(self._store.read)
        self._pictures: dict[str, Picture] = {}
        self._num_cached_bytes = 0
        self._sizes: dict[str, Size] = {}

    def load(self, value: "str | InlineImage") -> Picture:
        """The picture that a record names by a path, or carries with it.

        Raises:
            RecordError: the causes of :func:`check_image_path`, ``image_not_found``,
                ``image_not_file`` and ``image_not_read``.
            ImageError: the causes of :func:`make_picture`.
            StoreError: the bucket cannot be read at all, which is not the record's fault.
        """
        if isinstance(value, InlineImage):
            return make_picture(value.data, value.name, self._rules)
        picture = self._pictures.get(value)
        if picture is None:
            picture = make_picture(self.read(value), value, self._rules)
            self._keep(value, picture)
        return picture

    def read(self, path: str) -> bytes:
        """The bytes of the file that a record's path names.

        Raises:
            RecordError: as :meth:`load`.
            StoreError: as :meth:`load`.
        """
        if self._folder is not None:
            return read_image(self._folder, self._prefixes, path)
        inside = check_image_path(path)
        if _CONTROL.search(inside):
            raise RecordError("image_not_found", f"{path[:200]!r} is no name of an object")
        try:
            return self._store.read(inside) if self._ahead is None else self._ahead.take(inside)
        except StoreError as error:
            if error.cause != "not_found":
                raise
            for other in other_spellings(inside, path):
                with suppress(StoreError):
                    return self._store.read(other)
            detail = f"{path[:200]!r} is not in images-root"
            raise RecordError("image_not_found", detail) from error

    def size_of(self, value: "str | InlineImage") -> Size:
        """The upright size of an image; nothing is decoded.

        Raises:
            RecordError, ImageError, StoreError: as :meth:`load`.
        """
        if isinstance(value, InlineImage):
            return probe(value.data, self._rules.limits).size
        size = self._sizes.get(value)
        if size is None:
            size = self._sizes[value] = probe(self.read(value), self._rules.limits).size
        return size

    def prefetch(self, paths: Iterable[str]) -> None:
        """Begins to read images of a bucket, 16 at a time and 64 MiB ahead; else does nothing.

        Args:
            paths: Image paths of the coming records, in their order. Those that are no paths are
                passed over: :meth:`load` says what is wrong with them.
        """
        if self._ahead is not None:
            missing = [path for path in paths if path not in self._pictures]
            self._ahead.plan(_good_names(missing))

    def close(self) -> None:
        """Ends the threads that read ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def _keep(self, path: str, picture: Picture) -> None:
        self._pictures[path] = picture
        self._num_cached_bytes += len(picture.data)
        while self._num_cached_bytes > _MAX_CACHED_BYTES:
            dropped = self._pictures.pop(next(iter(self._pictures)))
            self._num_cached_bytes -= len(dropped.data)


def _good_names(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        with suppress(RecordError):
            yield check_image_path(path)


def _encoding(info: ImageInfo, wanted: Encoding, size: Size) -> Encoding:
    if wanted.kind != "keep":
        return wanted
    if size != info.size:
        if info.format in ("JPEG", "MPO"):
            return Encoding("jpeg", _RESIZED_QUALITY)
        if info.format == "WEBP":
            return Encoding("webp", _RESIZED_QUALITY)
    return Encoding("png")


def _encode(pixels: Pixels, encoding: Encoding) -> tuple[bytes, str]:
    if encoding.kind == "jpeg":
        return encode_jpeg(pixels, encoding.quality or _RESIZED_QUALITY), "jpg"
    if encoding.kind == "webp":
        return encode_webp(pixels, encoding.quality or _RESIZED_QUALITY), "webp"
    return encode_png(pixels), "png"


def _warnings(info: ImageInfo, name: str) -> tuple[tuple[str, str], ...]:
    warnings = []
    if info.num_frames > 1:
        detail = f"{info.num_frames} frames, the first one is used"
        warnings.append(("image_animated", detail))
    by_name = _FORMAT_OF_NAME.get(posixpath.splitext(name)[1].lower(), info.format)
    if by_name != info.format:
        detail = f"{posixpath.basename(name)[:200]} holds {info.format}: the content decides"
        warnings.append(("image_suffix", detail))
    return tuple(warnings)
