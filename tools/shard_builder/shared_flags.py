"""Flags that several commands share: how shards are cut and how a data set is split."""

import argparse
from typing import get_args

from grpo_stream.byte_sizes import parse_num_bytes
from shard_builder.build.build_settings import Executor
from shard_builder.build.chunk_plan import ShardLimits

SET_HELP = "folder, s3://, gs://, az:// or https:// of a data set"


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


def add_executor(command: "argparse.ArgumentParser | argparse._ArgumentGroup", local: str) -> None:
    """Adds ``--executor`` and ``--ray-address``.

    Args:
        command: Where to.
        local: Who works where there is no cluster.
    """
    command.add_argument(
        "--executor",
        choices=get_args(Executor),
        default="local",
        help=f"who works: {local}, or tasks of a Ray cluster (%(default)s)",
    )
    command.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="auto on a machine of the cluster, or ray://HOST:10001 (default: a Ray of its own)",
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
