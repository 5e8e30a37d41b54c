"""How raw records are written: what the fields are called and what the numbers mean."""

from dataclasses import dataclass
from typing import Literal

BoxFormat = Literal["xyxy", "xywh", "cxcywh", "yxyx", "corners", "point", "polygon"]
Coords = Literal["pixels", "unit", "per_mille"]
Several = Literal["reject", "keep"]


@dataclass(frozen=True)
class Rules:
    """How raw records are written."""

    image_key: str = "image"
    """Field with the image's path, relative to the images' folder."""
    prompt_key: str = "prompt"
    solution_key: str = "solution"
    box_format: BoxFormat = "xyxy"
    """What a box's numbers mean; two numbers are a point in every format. ``yxyx``: y first, in
    points too. ``corners``: two opposite corners in any order."""
    coords: Coords = "pixels"
    """Unit of the numbers: pixels of the upright image, 0-1 or 0-1000 over its sides."""
    several: Several = "reject"
    """What becomes of a record with a list of images or boxes, or with none; ``keep`` makes one
    sample of it. Of several boxes in several images, its field ``solution_images`` says which is
    where."""
    told: tuple[str, ...] = ()
    """Which of these settings the user said, so that no hint asks for them."""
    warning: tuple[str, str] | None = None
    """Cause and detail of what every such record is warned of."""
