"""From the data sets that a trainer is given to the streams that it reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.train.models.processor import known_rule
from grpo_stream.train.setup.settings_checks import check_stream, num_eval_lanes, world_of

PromptData = PromptStream | Sequence[Mapping[str, Any]]
"""A stream, or raw records."""


class ImageArguments(NamedTuple):
    """What a trainer is given for images."""

    processor: Any
    """Its target size is what raw records are resized to."""
    root: str | Path | None
    """Folder that the ``image`` of a raw record is relative to."""


def open_datasets(
    train_dataset: PromptData,
    eval_dataset: PromptData | None,
    args: GRPOConfig,
    num_lanes: int,
    images: ImageArguments,
    *,
    checks_sizes: bool,
) -> tuple[PromptStream, PromptStream | None]:
    """The streams for training and for evaluation.

    Args:
        train_dataset: For training.
        eval_dataset: For evaluation while training.
        args: The run's settings.
        num_lanes: Prompts per generation batch over all ranks.
        images: For raw records.
        checks_sizes: Whether images must come in sizes that the model takes as they are.

    Raises:
        ConfigError: a stream's lanes, rank or sizes are not those of the run, or data that are
            neither a stream nor a sequence.
    """
    rule = known_rule(images.processor) if checks_sizes else None
    train_stream = _open(train_dataset, args, num_lanes, images)
    check_stream(train_stream, args, num_lanes, rule)
    if eval_dataset is None:
        return train_stream, None
    num_lanes = num_eval_lanes(args)
    eval_stream = _open(eval_dataset, args, num_lanes, images)
    check_stream(eval_stream, args, num_lanes, rule)
    return train_stream, eval_stream


def _open(
    data: PromptData, args: GRPOConfig, num_lanes: int, images: ImageArguments
) -> PromptStream:
    if isinstance(data, PromptStream):
        return data
    if isinstance(data, str | Mapping) or not hasattr(data, "__len__"):
        raise ConfigError(
            "train_dataset",
            type(data).__name__,
            "is neither a PromptStream nor a sequence of records: the order of samples is planned "
            "over all of them. Make shards of what cannot be held in memory (shard-builder build), "
            "and a list of the rest, as in train_dataset=list(dataset)",
        )
    rule = known_rule(images.processor)
    config = StreamConfig(num_lanes=num_lanes, stream_seed=args.seed, resize=rule)
    source = RecordSource(data, images.root, limits=config.limits)
    return PromptStream(source, config, world_of(args))
