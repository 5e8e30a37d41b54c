"""From what a trainer is given, rewards and data sets, to what it runs on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.prompts import PromptTemplate
from grpo_stream.grounding.rewards import load_reward, named_reward, with_template
from grpo_stream.images import ResizeRule
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.stream.world import World
from grpo_stream.train.models.processor import known_rule
from grpo_stream.train.setup.open_data import num_eval_lanes

RewardFunction = Callable[..., list[float | None]]
"""A function with trl's signature."""
RewardArgument = RewardFunction | str | Sequence[RewardFunction | str]
"""One or several, each as it is or by name."""
PromptData = PromptStream | Sequence[Mapping[str, Any]]
"""A stream, or raw records."""


class ImageArguments(NamedTuple):
    """What a trainer is given for images."""

    processor: Any
    """Its target size is what raw records are resized to."""
    root: str | Path | None
    """Folder that the ``image`` of a raw record is relative to."""


def load_rewards(given: RewardArgument, template: PromptTemplate) -> list[RewardFunction]:
    """Reward functions whose errors name them, with the run's template where they ask for it.

    Raises:
        ConfigError: there is no function of such a name.
    """
    several = [given] if isinstance(given, str) or callable(given) else list(given)
    functions = [load_reward(one) if isinstance(one, str) else one for one in several]
    return [named_reward(with_template(function, template)) for function in functions]


def open_datasets(
    train_dataset: PromptData,
    eval_dataset: PromptData | None,
    args: GRPOConfig,
    num_prompts: int,
    images: ImageArguments,
    *,
    checks_sizes: bool,
) -> tuple[PromptStream, PromptStream | None]:
    """The streams for training and for evaluation.

    Args:
        train_dataset: For training.
        eval_dataset: For evaluation while training.
        args: The run's settings.
        num_prompts: Per generation batch over all ranks.
        images: For raw records.
        checks_sizes: Whether images must come in sizes that the model takes as they are.

    Raises:
        ConfigError: a stream's lanes, rank or sizes are not those of the run.
    """
    train_stream = _open(train_dataset, args, num_prompts, images)
    eval_stream = None
    if eval_dataset is not None:
        eval_stream = _open(eval_dataset, args, num_eval_lanes(args), images)
    if checks_sizes:
        rule = known_rule(images.processor)
        _check_sizes(train_stream, rule)
        if eval_stream is not None:
            _check_sizes(eval_stream, rule)
    return train_stream, eval_stream


def _open(
    data: PromptData, args: GRPOConfig, num_prompts: int, images: ImageArguments
) -> PromptStream:
    world = World(args.process_index, args.world_size, args.local_process_index)
    if not isinstance(data, PromptStream):
        rule = known_rule(images.processor)
        config = StreamConfig(num_lanes=num_prompts, seed=args.seed, resize=rule)
        source = RecordSource(data, images.root, limits=config.limits)
        return PromptStream(source, config, world)
    if data.config.num_lanes != num_prompts:
        raise ConfigError(
            "num_lanes",
            data.config.num_lanes,
            f"the batch sizes give {num_prompts} prompts per generation batch (completions over "
            f"all ranks / num_generations); use num_lanes={num_prompts}",
        )
    if data.world != world:
        raise ConfigError("world", data.world, f"the trainer runs as {world}")
    return data


def _check_sizes(stream: PromptStream, rule: ResizeRule | None) -> None:
    """Images are cut into patches as they come: the stream must have brought them to a size."""
    given = stream.config.resize
    if rule is not None and (given is None or given.multiple % rule.multiple):
        raise ConfigError(
            "resize",
            given,
            f"the model takes sizes in multiples of {rule.multiple}; use StreamConfig(resize="
            "resize_rule(image_processor))",
        )
