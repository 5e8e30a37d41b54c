"""Prints which samples one rank gets, step by step, read through the real loader."""

import argparse
from collections.abc import Iterator

from benchmarks.command_line import Commands, new_command
from grpo_stream.errors import ConfigError
from grpo_stream.stream.config import CacheSettings, StreamConfig
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.open_shards import open_shards, parse_shards
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.world import World

_EPILOG = """\
One line per generation batch: its number, a tab, and the keys of this rank's prompts in slot order.
The keys of all ranks, put behind one another, do not depend on the world size or the threads.
"""


def add_command(commands: Commands) -> None:
    """Adds ``order`` to the command line."""
    command = new_command(commands, "order", "print the keys that a rank gets", __doc__, _EPILOG)
    add = command.add_argument
    add(
        "--shards",
        required=True,
        nargs="+",
        metavar="URL[=WEIGHT]",
        help="folders or URLs of data sets; several with weights, as in a=0.7 b=0.3",
    )
    add("--prompts-per-batch", type=int, required=True, metavar="P", help="over all ranks")
    add("--world-size", type=int, default=1, metavar="W", help="ranks (%(default)s)")
    add("--rank", type=int, default=0, metavar="R", help="this rank (%(default)s)")
    add("--num-reader-threads", type=int, default=2, metavar="N", help="(%(default)s)")
    add("--num-decode-processes", type=int, default=0, metavar="N", help="in the threads' place")
    add("--cache-dir", help="keeps whole shards in this folder")
    add("--start-step", type=int, default=0, metavar="S", help="first batch (%(default)s)")
    add("--num-steps", type=int, metavar="K", help="batches; the rest of the epoch if not given")
    add("--stream-seed", type=int, default=0, help="of the order (%(default)s)")
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
        stream_seed=args.stream_seed,
        block_shards=args.block_shards,
        num_reader_threads=args.num_reader_threads,
        num_decode_processes=args.num_decode_processes,
    )
    urls, weights = parse_shards(args.shards)
    cache = CacheSettings(args.cache_dir) if args.cache_dir else None
    world = World(args.rank, args.world_size, args.rank)
    stream = PromptStream(open_shards(urls, cache=cache), config, world, weights=weights)
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
    end = args.start_step + num_steps
    with PromptLoader(stream, list, until=(args.epoch, end)) as loader:
        for batch_index in range(args.start_step, end):
            samples = loader.get(args.epoch, batch_index)
            yield batch_index, [sample.key for sample in samples]
