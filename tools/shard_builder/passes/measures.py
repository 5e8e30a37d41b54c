"""What is measured of a data set: counts and spreads that can be added up."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_stream.images import ResizeRule
from shard_builder.datasets.streaming_quantiles import BoundedCounter, Spread

HEAT_CELLS = 32
"""The heat map has as many columns and rows."""


@dataclass(eq=False)
class Measures:
    """What a data set holds. Its size does not depend on the data set's.

    Boxes are measured in pixels of the stored image, tokens at the size that ``rule`` gives.
    """

    rule: ResizeRule
    num_samples: int = 0
    num_shards: int = 0
    num_bytes: int = 0
    digest: str = ""
    rejects: Counter[str] = field(default_factory=Counter)
    """Rejected records by cause."""
    warnings: Counter[str] = field(default_factory=Counter)
    """Warnings by cause."""
    formats: Counter[str] = field(default_factory=Counter)
    """Images by suffix."""
    sizes: BoundedCounter = field(default_factory=BoundedCounter)
    """Images by ``WIDTHxHEIGHT``."""
    num_boxes: int = 0
    num_points: int = 0
    num_multi_image: int = 0
    """Samples of several images."""
    num_text_only: int = 0
    """Samples without images."""
    num_multi_box: int = 0
    """Samples of several boxes or points."""
    num_untokenised: int = 0
    """Images that the processor would refuse: beyond 200 to 1."""
    num_narrow_boxes: int = 0
    """Boxes of which a side is shorter than a token at the model's size."""
    num_tiny_boxes: int = 0
    """Boxes of which both sides are shorter than a token at the model's size."""
    width: Spread = field(default_factory=Spread)
    height: Spread = field(default_factory=Spread)
    aspect_ratio: Spread = field(default_factory=Spread)
    """Width / height."""
    image_bytes: Spread = field(default_factory=Spread)
    box_width: Spread = field(default_factory=Spread)
    box_height: Spread = field(default_factory=Spread)
    box_side: Spread = field(default_factory=Spread)
    """The shorter side of a box."""
    box_share: Spread = field(default_factory=Spread)
    """Area of a box / area of its image."""
    prompt_chars: Spread = field(default_factory=Spread)
    tokens: Spread = field(default_factory=Spread)
    """Visual tokens of an image."""
    centres: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((HEAT_CELLS, HEAT_CELLS), np.int64)
    )
    """Shape (32, 32): places by row (y) and column (x) of their centre, over the image's sides."""

    def merge(self, other: "Measures") -> None:
        """Adds what was measured elsewhere with the same rule; what names the set stays."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            if isinstance(mine, (Spread, BoundedCounter)):
                mine.merge(theirs)
            elif isinstance(mine, Counter):
                mine.update(theirs)
            elif one.name not in ("rule", "digest"):
                setattr(self, one.name, mine + theirs)

    def to_values(self) -> dict[str, Any]:
        """All but the rule, as JSON values."""
        values: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Spread):
                values[one.name] = value.to_values()
            elif isinstance(value, BoundedCounter):
                values[one.name] = [value.counts, value.num_others]
            elif one.name != "rule":
                values[one.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return values

    @classmethod
    def from_values(cls, rule: ResizeRule, values: dict[str, Any]) -> "Measures":
        """What :meth:`to_values` was given."""
        found = cls(rule)
        for name, value in values.items():
            empty = getattr(found, name)
            if isinstance(empty, Spread):
                setattr(found, name, Spread.from_values(value))
            elif isinstance(empty, BoundedCounter):
                empty.counts.update(value[0])
                empty.num_others = value[1]
            elif isinstance(empty, Counter):
                empty.update(value)
            else:
                is_array = isinstance(empty, np.ndarray)
                setattr(found, name, np.array(value, np.int64) if is_array else value)
        return found
