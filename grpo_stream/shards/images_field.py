"""The field ``images`` of a sample's JSON, which tells samples of several images and of none."""

from collections.abc import Mapping
from typing import Any

from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.solution_field import short_value
from grpo_stream.targets import WANTED_FIELD

IMAGE_PLACEHOLDER = "<image>"
"""What a prompt may hold in the places of its images: once for each of them, or not at all."""


def is_of_several_images(meta: Mapping[str, Any]) -> bool:
    """Whether ``images`` in a JSON member is this format's list, not a field of the record's own.

    The format's is a list of two or more objects that have a ``width``.
    """
    images = meta.get("images")
    return (
        isinstance(images, list)
        and len(images) > 1
        and all(isinstance(image, dict) and "width" in image for image in images)
    )


def is_text_only(meta: Mapping[str, Any]) -> bool:
    """Whether a JSON member is that of a sample without images.

    It says so: ``images`` is an empty list, and there is no ``width``.
    """
    return meta.get("images") == [] and "width" not in meta


def check_placeholders(meta: Mapping[str, Any], where: str) -> None:
    """Checks that a prompt has a place for each image, or none.

    Raises:
        ShardFormatError: cause ``image_placeholders``.
    """
    found = meta["prompt"].count(IMAGE_PLACEHOLDER)
    if found:
        is_listed = is_of_several_images(meta) or is_text_only(meta)
        num_images = len(meta["images"]) if is_listed else 1
        if found != num_images:
            detail = f"the prompt has {found} places for images, and there are {num_images}: "
            detail += f"write {IMAGE_PLACEHOLDER} once for each, or not at all"
            raise ShardFormatError("image_placeholders", f"{where}: {detail}")


def check_text_only(meta: Mapping[str, Any], where: str) -> None:
    """Checks that a sample without images has no place.

    Raises:
        ShardFormatError: cause ``bad_meta``.
    """
    if meta.get("solution") != [] or meta.get(WANTED_FIELD) in ("any", "all"):
        found = f"solution={short_value(meta.get('solution'))}"
        expected = "must be [] in a sample without images: no place is in one"
        raise ShardFormatError("bad_meta", f"{where}: {found}: {expected}")
