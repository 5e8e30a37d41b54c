"""Flags that several commands share: how shards are cut and how a data set is split."""

import argparse

from grpo_stream.byte_sizes import parse_num_bytes
from shard_builder.build.chunk_plan import ShardLimits


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


def _share(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=SHARE, as in val=0.02") from None
