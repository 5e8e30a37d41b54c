"""A sample's key."""

import re

_NO_KEY = re.compile(r"[^A-Za-z0-9]+")


def make_key(position: int, image_path: str) -> str:
    """A sample's key: its record's position over all inputs, then what its image is called.

    The position makes it unique whatever the case of letters, and does not depend on what else
    was rejected.
    """
    name = image_path.rpartition("/")[2]
    stem = _NO_KEY.sub("-", name.rpartition(".")[0] or name).strip("-")[:40]
    return f"{position:09d}_{stem}" if stem else f"{position:09d}"
