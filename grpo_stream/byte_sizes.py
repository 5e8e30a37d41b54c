"""Sizes in bytes as people write them."""

import argparse
import re

_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_num_bytes(text: str) -> int:
    """A size in bytes, as in 268435456, 256MiB or 1 GB.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r}: write a size as 268435456 or 256MiB")
    return int(match[1]) * _UNITS[match[2].upper()]


def format_num_bytes(num_bytes: int) -> str:
    """A size in the largest unit that leaves it whole, as in 256MiB."""
    sizes = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
    unit = next((name for name, size in sizes.items() if not num_bytes % size), "")
    return f"{num_bytes // sizes.get(unit, 1)}{unit}"
