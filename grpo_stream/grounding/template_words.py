"""The words of a template: its placeholders, and the places of images in a text."""

from collections.abc import Sequence
from string import Formatter

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.shards.images_field import IMAGE_PLACEHOLDER

NEEDS_SEVERAL = (
    "the template names the width and height of one image; give it a text 'several', which may "
    "hold {sizes}"
)
"""What is wrong with a template for samples of several images."""


def check_words(name: str, text: str, sizes: Sequence[str]) -> None:
    """Checks the placeholders of a template's text.

    Args:
        name: Of the text, for the message.
        text: Must hold ``{instruction}``.
        sizes: Placeholders that it may hold besides.

    Raises:
        ConfigError: there are others, or it is no template.
    """
    listed = ", ".join(f"{{{size}}}" for size in sizes)
    expected = f"may hold {{instruction}} and {listed}; write a literal brace twice: {{{{"
    try:
        fields = fields_of(text)
    except ValueError as error:
        raise ConfigError(name, text, f"{expected} ({error})") from error
    if "instruction" not in fields:
        raise ConfigError(name, text, "must hold {instruction}")
    if not set(fields) <= {"instruction", *sizes}:
        raise ConfigError(name, text, expected)


def fields_of(text: str) -> list[str]:
    """The placeholders in a template's text.

    Raises:
        ValueError: it is no template.
    """
    return [name for _, name, _, _ in Formatter().parse(text) if name is not None]


def blocks_of(text: str, num_images: int) -> list[dict[str, str]]:
    """A message's text with images in their places, or before it.

    Raises:
        RecordError: cause ``image_placeholders``: it has places for another number of them.
    """
    num_places = text.count(IMAGE_PLACEHOLDER)
    if num_places not in (0, num_images):
        detail = f"{num_places} places for {num_images} images: write {IMAGE_PLACEHOLDER} once for "
        raise RecordError("image_placeholders", f"{detail}each, or not at all: {text[:200]!r}")
    image = {"type": "image"}
    if num_places == 0:
        return [*[image] * num_images, {"type": "text", "text": text}]
    pieces = [{"type": "text", "text": piece} for piece in text.split(IMAGE_PLACEHOLDER)]
    in_turn = [block for piece in pieces for block in (piece, image)][:-1]
    return [block for block in in_turn if block.get("text") != ""]
