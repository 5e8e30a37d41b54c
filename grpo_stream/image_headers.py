"""What the first bytes of a plain JPEG, PNG or WebP say, in a few microseconds.

Pillow decides on everything else: :func:`read_header` answers only where it is sure of what
Pillow would answer, and ``None`` otherwise. Sources: ITU-T T.81 annex B (JPEG), W3C PNG third
edition, RFC 9649 (WebP), CIPA DC-008 (EXIF).
"""

import struct
from dataclasses import dataclass

from grpo_stream.boxes import Size
from grpo_stream.checksum import crc32

_U16 = struct.Struct(">H").unpack_from
_SEGMENT = struct.Struct(">BBH").unpack_from  # of a JPEG: 0xFF, marker, length with itself
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_IEND = b"IEND\xaeB`\x82"  # chunk type and checksum of an empty chunk
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# Chunks that change neither pixels nor orientation; others (APNG's, private ones) are Pillow's.
_PNG_NEUTRAL = frozenset(
    [b"PLTE", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"hIST", b"pHYs", b"tIME"]
)
_PNG_TEXT = frozenset([b"tEXt", b"zTXt", b"iTXt"])
_PNG_TEXT_KEYS_OF_PILLOW = (b"exif\0", b"transparency\0")  # Pillow takes these for chunks
_MAX_SEGMENTS = 200  # before the pixels; more is Pillow's
MAX_SCANS = 100
"""Scans of a JPEG; each goes over all pixels. Encoders write 10 to 60."""
_EXIF_UNIT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_EXIF_ORIENTATION = 0x0112
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_WEBP_ANIMATION, _WEBP_XMP, _WEBP_EXIF, _WEBP_ALPHA = 0x02, 0x04, 0x08, 0x10


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image's header says."""

    format: str
    """Pillow's name: JPEG, PNG, WEBP, ..."""
    size: Size
    """Upright size, EXIF orientation applied, in pixels."""
    is_plain: bool
    """The stored pixels are the upright RGB pixels: no rotation, alpha, palette or frames."""
    num_frames: int
    """More than 1 for an animation; only the first frame is used."""


def read_header(data: bytes) -> ImageInfo | None:
    """What Pillow would say of a file, where that is certain without asking it.

    Nothing is decoded, and pixel data are not looked at. Never raises.

    Args:
        data: The whole file.

    Returns:
        None for other formats, for animations, and for whatever is damaged or unusual.
    """
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
        if data[:8] == _PNG_SIGNATURE:
            return _png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (IndexError, struct.error):  # the file ends inside its header
        pass
    return None


def has_end(data: bytes, image_format: str) -> bool:
    """Whether a file reaches its format's end marker, so that it was not cut short.

    What follows the marker does not matter: some cameras append data of their own.

    Args:
        data: The whole file.
        image_format: Pillow's name. JPEG: end of image (EOI) after the first scan begins; PNG:
            the IEND chunk; WEBP: the length that the file's head gives. Other formats have no
            such marker and are always taken to be whole.
    """
    if image_format == "JPEG":
        return data.endswith(b"\xff\xd9") or data.rfind(b"\xff\xd9", _first_scan(data)) >= 0
    if image_format == "PNG":
        return data.endswith(_PNG_IEND) or data.rfind(_PNG_IEND) >= 0
    if image_format == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return True


def has_many_scans(data: bytes, start: int | None = None) -> bool:
    """Whether a JPEG has more than :data:`MAX_SCANS` scans, so that decoding it takes minutes.

    Args:
        data: The whole file. In pixel data 0xFF is followed by a zero or a restart marker, so the
            marker that begins a scan (SOS) is none of them.
        start: Where its first scan begins, where that is known.
    """
    return data.count(b"\xff\xda", _first_scan(data) if start is None else start) > MAX_SCANS


def _jpeg(data: bytes) -> ImageInfo | None:
    size: Size | None = None
    num_components = 0
    orientation: int | None = 1
    has_exif = has_xmp_orientation = is_progressive = False
    position = 2
    for _ in range(_MAX_SEGMENTS):
        ff, marker, num_bytes = _SEGMENT(data, position)
        start, end = position + 4, position + 2 + num_bytes
        if ff != 0xFF or num_bytes < 2 or end > len(data):
            return None
        if marker in (0xC4, 0xDD, 0xFE):
            pass  # Huffman tables, restart interval, comment
        elif marker == 0xE1:
            if data.startswith(b"Exif\0\0", start):
                orientation = None if has_exif else _exif_orientation(data[start + 6 : end])
                has_exif = True
                if orientation is None:
                    return None
            elif data.startswith(_XMP, start):
                has_xmp_orientation |= data.find(b"tiff:Orientation", start, end) >= 0
        elif marker == 0xE2:
            if data.startswith((b"MPF\0", b"ICC_PROFILE\0"), start) and (
                data[start] == 0x4D or end < start + 14
            ):
                return None  # several pictures in one file; a profile cut short
        elif marker in (0xC0, 0xC1, 0xC2):
            num_components = data[start + 5]
            if size is not None or data[start] != 8 or end != start + 6 + 3 * num_components:
                return None
            size = Size(_U16(data, start + 3)[0], _U16(data, start + 1)[0])
            is_progressive = marker == 0xC2
        elif marker == 0xDB:
            while start < end:  # tables of 8 or 16 bits
                start += 65 if data[start] < 16 else 129
            if start != end:
                return None
        elif marker == 0xDA:
            if size is None or 0 in size or num_components not in (1, 3, 4):
                return None
            if has_xmp_orientation:
                return None  # Pillow reads it where EXIF gives none
            is_single = data[start] == num_components and not is_progressive
            if not is_single and has_many_scans(data, position):
                return None
            return _info("JPEG", size, num_components != 4, orientation or 1)
        elif not 0xE0 <= marker <= 0xEF or (marker in (0xE0, 0xEE) and num_bytes < 14):
            return None
        position = end
    return None


def _first_scan(data: bytes) -> int:
    """Where a JPEG's first scan begins, or where its segments stop making sense."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xDA:
            return position
        if data[position + 1] == 0xFF:  # padding before a marker
            position += 1
        else:
            position += 2 + _U16(data, position + 2)[0]
    return position


def _png(data: bytes) -> ImageInfo | None:
    if data[8:16] != b"\0\0\0\rIHDR":
        return None
    width, height, depth, colour, compression, filtering, interlace = struct.unpack_from(
        ">IIBBBBB", data, 16
    )
    is_known = depth in _PNG_DEPTHS.get(colour, ()) and not (compression or filtering)
    if not is_known or interlace > 1 or not (0 < width < 2**31 and 0 < height < 2**31):
        return None
    # Pillow's modes RGB and L; grey of 1 or 16 bits and all others are converted.
    is_plain = colour == 2 or (colour == 0 and depth in (2, 4, 8))
    orientation: int | None = None
    position = 8
    for _ in range(_MAX_SEGMENTS):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if kind == b"IDAT":
            return _info("PNG", Size(width, height), is_plain, orientation or 1)
        start, end = position + 8, position + 8 + length
        checksum = int.from_bytes(data[end : end + 4], "big")
        if end + 4 > len(data) or crc32(data[start - 4 : end]) != checksum:
            return None
        if kind == b"tRNS":
            if length < (6 if colour == 2 else 2 if colour == 0 else 0):
                return None
            is_plain = False
        elif kind == b"eXIf":
            found = _exif_orientation(data[start:end])
            if found is None or orientation is not None:
                return None
            orientation = found
        elif kind in _PNG_TEXT:
            if data.startswith(_PNG_TEXT_KEYS_OF_PILLOW, start):
                return None
        elif kind not in _PNG_NEUTRAL and position != 8:
            return None
        position = end + 4
    return None


def _webp(data: bytes) -> ImageInfo | None:
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    kind = data[12:16]
    if kind != b"VP8X":
        frame = _webp_frame(data, 12)
        return None if frame is None else _info("WEBP", frame[0], not frame[1], 1)
    flags = data[20]
    if flags & (_WEBP_ANIMATION | _WEBP_XMP) or int.from_bytes(data[16:20], "little") != 10:
        return None
    width = 1 + int.from_bytes(data[24:27], "little")
    height = 1 + int.from_bytes(data[27:30], "little")
    frame = None
    orientation: int | None = 1
    has_exif = False
    position = 30
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > end:
            break
        kind = data[position : position + 4]
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if position + 8 + length > end:
            return None
        if kind in (b"VP8 ", b"VP8L"):
            if frame is not None:
                return None
            frame = _webp_frame(data, position)
        elif kind == b"ALPH" and not flags & _WEBP_ALPHA:
            return None
        elif kind == b"EXIF" and flags & _WEBP_EXIF:
            if has_exif:
                return None
            orientation = _exif_orientation(data[position + 8 : position + 8 + length])
            has_exif = True
        position += 8 + length + (length & 1)
    if frame is None or frame[0] != (width, height) or orientation is None:
        return None
    has_alpha = bool(flags & _WEBP_ALPHA)
    if frame[1] and not has_alpha:
        return None
    return _info("WEBP", Size(width, height), not has_alpha, orientation)


def _webp_frame(data: bytes, position: int) -> tuple[Size, bool] | None:
    """Size of a frame and whether it has transparency itself."""
    kind = data[position : position + 4]
    if kind == b"VP8 ":
        if data[position + 8] & 1 or data[position + 11 : position + 14] != b"\x9d\x01\x2a":
            return None
        width, height = struct.unpack_from("<HH", data, position + 14)
        size, has_alpha = Size(width & 0x3FFF, height & 0x3FFF), False
    elif kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, position + 8)
        if signature != 0x2F or bits >> 29:
            return None
        size = Size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        has_alpha = bool(bits >> 28 & 1)
    else:
        return None
    return None if 0 in size else (size, has_alpha)


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in a TIFF block, 1 where it is not told, None where that is not sure."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    (offset,) = struct.unpack_from(f"{order}I", exif, 4)
    (num_entries,) = struct.unpack_from(f"{order}H", exif, offset)
    for number in range(num_entries):
        position = offset + 2 + 12 * number
        tag, kind, count = struct.unpack_from(f"{order}HHI", exif, position)
        num_bytes = count * _EXIF_UNIT_BYTES.get(kind, 0)
        if num_bytes > 4:
            (there,) = struct.unpack_from(f"{order}I", exif, position + 8)
            if there + num_bytes > len(exif):
                return None
        if tag == _EXIF_ORIENTATION:
            if (kind, count) != (3, 1):
                return None
            return int(struct.unpack_from(f"{order}H", exif, position + 8)[0])
    return 1


def _info(image_format: str, size: Size, is_plain: bool, orientation: int) -> ImageInfo:
    if 5 <= orientation <= 8:
        size = Size(size.height, size.width)
    return ImageInfo(image_format, size, is_plain and not 2 <= orientation <= 8, 1)
