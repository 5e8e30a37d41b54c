"""Flags that several commands share: how shards are cut and how a data set is split."""

import argparse
import re

from tools.shard_builder.plan import ShardLimits

_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_shard_limits(command: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Adds ``--samples-per-shard`` and ``--max-shard-bytes``."""
    add, limits = command.add_argument, ShardLimits()
    add(
        "--samples-per-shard",
        type=int,
        default=limits.max_samples,
        metavar="N",
        help="a shard takes N records; rejects leave it shorter (%(default)s)",
    )
    add(
        "--max-shard-bytes",
        type=parse_num_bytes,
        default=limits.max_bytes,
        metavar="SIZE",
        help="a shard is cut before it passes SIZE, as in 256MiB (the default)",
    )


def add_split_flag(command: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Adds ``--split``."""
    command.add_argument(
        "--split",
        action="append",
        type=_share,
        default=[],
        metavar="NAME=SHARE",
        help="set apart a share of the images, as in val=0.02; folders OUT/val and OUT/train",
    )


def parse_num_bytes(text: str) -> int:
    """A size in bytes, as in 268435456, 256MiB or 1 GB.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r}: write a size as 268435456 or 256MiB")
    return int(match[1]) * _UNITS[match[2].upper()]


def _share(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=SHARE, as in val=0.02") from None
