"""What people write where a record names its image: a path, a list of one, the picture itself."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from grpo_stream.records.formats.inline_image import InlineImage

_DATA_URI = re.compile(r"\s*data:(?:image/)?([\w.+-]*)[^,]*;base64,", re.IGNORECASE)
_MIN_BASE64_CHARS = 300  # no path is longer and without a dot
_URL_SAFE = str.maketrans("-_", "+/")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_MAGIC = (
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*",
    b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51",
)  # fmt: skip


def unwrapped_image(value: Any) -> Any:
    """A path, an InlineImage, or a list of several; other values are left to the judge.

    Understood are lists of one, ``{"path": ...}``, ``{"url": ...}``, ``{"bytes": ...}``, data URIs
    and bare base64.
    """
    if type(value) is str:
        if len(value) < _MIN_BASE64_CHARS and value[:5].lower() != "data:":
            return value  # nearly all
        return _decoded(value)
    if isinstance(value, list):
        found = [unwrapped_image(item) for item in value]
        return found[0] if len(found) == 1 else found
    if isinstance(value, bytes) and has_image_magic(value):
        return InlineImage("image", value)
    if isinstance(value, Mapping):
        if isinstance(data := value.get("bytes"), (bytes, str)) and data:
            found_image = unwrapped_image(data)
            if isinstance(found_image, InlineImage) and isinstance(value.get("path"), str):
                return InlineImage(value["path"], found_image.data)
            return found_image
        for name in ("path", "url", "image", "image_url"):
            if value.get(name):
                return unwrapped_image(value[name])
    return value


def has_image_magic(data: bytes) -> bool:
    """Whether bytes begin as an image file does."""
    return data.startswith(_MAGIC) or data[4:12] in (b"ftypavif", b"ftypavis")


def _decoded(text: str) -> Any:
    head = _DATA_URI.match(text)
    kind = (head.group(1) or "") if head else ""
    body = text[head.end() :] if head else text
    if head is None and not _BASE64.fullmatch(body):
        return text
    if head is not None and "%" in body:  # a URI may write +, / and = as %2B, %2F and %3D
        body = unquote(body)
    body = "".join(body.split()).translate(_URL_SAFE)
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), validate=False)
    except (binascii.Error, ValueError):
        return text
    if not has_image_magic(data):
        return text
    return InlineImage(f"inline.{kind.lower().partition('+')[0]}" if kind else "inline", data)
