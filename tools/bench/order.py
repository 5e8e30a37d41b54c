"""Prints which samples one rank gets, step by step, read through the real loader."""

import argparse
from collections.abc import Iterator

from grpo_stream.config import StreamConfig
from grpo_stream.errors import ConfigError
from grpo_stream.stream.dataset import PromptStream
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World

_EPILOG = """\
One line per generation batch: its number, a tab, and the keys of this rank's prompts in slot order.
The keys of all ranks, put behind one another, do not depend on the world size or the threads.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``order`` to the command line."""
    command = commands.add_parser(
        "order",
        help="print the keys that a rank gets",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--shards", required=True, help="folder or URL of a data set")
    add("--prompts-per-batch", type=int, required=True, metavar="P", help="over all ranks")
    add("--world-size", type=int, default=1, metavar="W", help="ranks (%(default)s)")
    add("--rank", type=int, default=0, metavar="R", help="this rank (%(default)s)")
    add("--num-workers", type=int, default=2, metavar="N", help="reading threads (%(default)s)")
    add("--start-step", type=int, default=0, metavar="S", help="first batch (%(default)s)")
    add("--num-steps", type=int, metavar="K", help="batches; the rest of the epoch if not given")
    add("--seed", type=int, default=0, help="of the order (%(default)s)")
    add("--epoch", type=int, default=0, help="counted from 0 (%(default)s)")
    add("--block-shards", type=int, default=4, help="shards mixed with one another (%(default)s)")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the lines."""
    for batch_index, keys in order(args):
        print(f"{batch_index}\t{' '.join(keys)}", flush=True)


def order(args: argparse.Namespace) -> Iterator[tuple[int, list[str]]]:
    """Number and keys of each generation batch that was asked for.

    Raises:
        ConfigError: a number that cannot be.
    """
    config = StreamConfig(
        num_lanes=args.prompts_per_batch,
        seed=args.seed,
        block_shards=args.block_shards,
        num_threads=args.num_workers,
    )
    world = World(args.rank, args.world_size, args.rank)
    stream = PromptStream(ShardSource(args.shards), config, world)
    last = stream.num_batches - 1
    if not 0 <= args.start_step <= last:
        raise ConfigError("--start-step", args.start_step, f"must be from 0 to {last}")
    if args.epoch < 0:
        raise ConfigError("--epoch", args.epoch, "must be 0 or more")
    rest = stream.num_batches - args.start_step
    num_steps = rest if args.num_steps is None else args.num_steps
    if not 1 <= num_steps <= rest:
        expected = f"must be from 1 to {rest}: the epoch has {stream.num_batches} batches"
        raise ConfigError("--num-steps", num_steps, expected)
    with PromptLoader(stream, list) as loader:
        for batch_index in range(args.start_step, args.start_step + num_steps):
            samples = loader.get(args.epoch, batch_index)
            yield batch_index, [sample.key for sample in samples]
