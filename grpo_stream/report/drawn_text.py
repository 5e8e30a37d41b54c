"""Words on drawn pictures, in the one font that Pillow brings along."""

import unicodedata
from functools import lru_cache

from PIL import ImageFont

_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_UNKNOWN = "\N{MIDDLE DOT}"
_NO_CHARACTER = "\U0010ffff"  # no font has it, so it shows what the font draws for a lack
_LIKE = {"\N{MULTIPLICATION SIGN}": "x", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\n": " "}


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font at ``size`` pixels; the same on every machine, so pictures are too.

    Raises:
        ImportError: this Pillow was built without FreeType; its wheels have it.
    """
    found = ImageFont.load_default(size)
    if isinstance(found, ImageFont.FreeTypeFont):
        return found
    raise ImportError("Pillow without FreeType: install its wheel (pip install pillow)")


def drawable(text: str) -> str:
    """``text`` in characters that the font has: accents fall off, the rest becomes dots."""
    return "".join(map(_drawable, text))


def wrap(text: str, size: int, width: float, max_lines: int) -> list[str]:
    """Lines of ``text`` that are at most ``width`` pixels wide at font size ``size``.

    What the font lacks is replaced (:func:`drawable`), words too long for a line are cut, and
    what does not fit ``max_lines`` lines ends in an ellipsis.
    """
    type_face = font(size)
    lines = [""]
    for word in drawable(text[: 400 * max_lines]).split():
        longer = f"{lines[-1]} {word}".lstrip()
        if type_face.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and type_face.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
        if len(lines) > max_lines:
            break
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and type_face.getlength(last + _ELLIPSIS) > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + _ELLIPSIS]
    return lines


@lru_cache(maxsize=4096)
def _drawable(character: str) -> str:
    if character.isascii() and character.isprintable():
        return character
    if character.isspace():
        return " "
    if _has(character):
        return character
    plain = unicodedata.normalize("NFD", character)
    base = "".join(letter for letter in plain if letter.isascii() and letter.isprintable())
    if base or unicodedata.combining(character):
        return base
    return _LIKE.get(character, _UNKNOWN)


def _has(character: str) -> bool:
    face = font(20)
    return bytes(face.getmask(character)) != bytes(face.getmask(_NO_CHARACTER))
