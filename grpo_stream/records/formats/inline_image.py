"""An image that is in the input itself: a row of a table or a member of a tar."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class InlineImage:
    """What is in a record's image field in place of a path."""

    name: str
    """What the input calls it, for keys and messages; no path to open."""
    data: bytes = field(repr=False)
    """The image file's bytes."""
