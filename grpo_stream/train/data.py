"""From a user's settings to the prompt stream that a trainer reads."""

from pathlib import Path
from typing import Any

from trl import GRPOConfig

from grpo_stream.config import StreamConfig
from grpo_stream.errors import ConfigError
from grpo_stream.images import ResizeRule
from grpo_stream.stream.dataset import PromptStream
from grpo_stream.stream.records import RecordSource
from grpo_stream.stream.sources import ShardSource, Source
from grpo_stream.stream.world import World
from grpo_stream.train.config import DataArguments
from grpo_stream.train.processor import resize_rule


def open_source(data: DataArguments) -> Source:
    """The shards or raw records that the settings name.

    Raises:
        ConfigError: they name none, or a file that is not there.
        ManifestError: the shards have no manifest.
        StoreError: they cannot be reached.
    """
    data.check()
    if data.shards is not None:
        return ShardSource(data.shards)
    return RecordSource.from_file(Path(str(data.json)), data.images_root)


def make_stream(
    source: Source,
    data: DataArguments,
    *,
    num_lanes: int,
    seed: int,
    image_processor: Any,
    world: World,
) -> PromptStream:
    """The stream of ``source`` for this rank.

    Args:
        source: Shards or raw records.
        data: How they are read.
        num_lanes: Prompts per generation batch over all ranks.
        seed: Of the order, where ``data.stream_seed`` is None.
        image_processor: Its target size is what the stream resizes to.
        world: This process.

    Raises:
        ConfigError: the world size does not divide the lanes, or there are too few samples.
    """
    config = stream_config(data, num_lanes=num_lanes, seed=seed, rule=resize_rule(image_processor))
    return PromptStream(source, config, world)


def stream_config(
    data: DataArguments, *, num_lanes: int, seed: int, rule: ResizeRule | None
) -> StreamConfig:
    """The stream's settings among a user's; see :func:`make_stream`.

    Raises:
        ConfigError: one of them cannot work.
    """
    return StreamConfig(
        num_lanes=num_lanes,
        seed=seed if data.stream_seed is None else data.stream_seed,
        block_shards=data.block_shards,
        num_threads=data.num_reader_threads,
        prefetch_batches=data.prefetch_batches,
        max_bad_samples=data.max_bad_samples,
        resize=rule,
    )


def num_eval_lanes(args: GRPOConfig) -> int:
    """Prompts per evaluation batch over all ranks.

    Raises:
        ConfigError: a group would be split between ranks.
    """
    num_generations = args.num_generations_eval or args.num_generations
    if args.per_device_eval_batch_size % num_generations:
        raise ConfigError(
            "per_device_eval_batch_size",
            args.per_device_eval_batch_size,
            f"must be a multiple of the {num_generations} completions of a group, for example "
            f"{num_generations}",
        )
    num_lanes: int = args.world_size * args.per_device_eval_batch_size // num_generations
    return num_lanes
