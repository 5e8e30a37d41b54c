"""Fewer micro-steps of more groups: the same global step, in fewer kernels and more memory."""

from dataclasses import replace
from typing import Any

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.accelerate_launch import precision_of
from grpo_stream.train.setup.memory.group_memory import Batch, expected_layout
from grpo_stream.train.setup.memory.memory_estimate import Zero, activation_bytes, head_bytes
from grpo_stream.train.setup.memory.model_sizes import MetaModel, find_config

_WORDS = 20  # tokens of a prompt beside its image, as in Batch


def micro_step_notes(settings: Any, max_pixels: int | None) -> list[str]:
    """What would make a global step of fewer kernels, for a dry run or a run on a GPU.

    Args:
        settings: The run's.
        max_pixels: Of an image.

    Returns:
        Nothing where a global step is one micro-step, or where groups are computed one after
        another anyway, as forked and plain ones are.
    """
    args = settings.args
    num_micro_steps = args.gradient_accumulation_steps
    if (
        (not settings.run.dry_run and args.device.type == "cpu")
        or settings.task.shared_prefix == "off"
        or num_micro_steps == 1
        or num_micro_steps != args.steps_per_generation
        or args.per_device_train_batch_size % args.num_generations
    ):
        return []
    config = _config_of(settings)
    if config is not None and expected_layout(config) != "packed":
        return []
    size, views = args.per_device_train_batch_size, settings.task.num_views
    groups = size * num_micro_steps // args.num_generations
    command = f"launch/estimate.py --groups-per-micro-step {groups}"
    if views > 1:
        command += f" --num-views {views}"
    cost = "where memory allows"
    if config is not None:
        batch = replace(
            _prompt_of(config, max_pixels),
            completion_tokens=args.max_completion_length,
            num_generations=args.num_generations // views,
            groups_per_micro_step=size // args.num_generations * views,
        )
        zero = Zero(
            args.world_size,
            element_bytes=4 if precision_of(args) == "float32" else 2,
            gradient_checkpointing=args.gradient_checkpointing,
        )
        more = bytes_of_joining(MetaModel(config), zero, batch, num_micro_steps)
        cost = f"for {more / 1e9:.1f} GB more of each GPU in an update, as estimated"
    note = (
        f"per_device_train_batch_size={size * num_micro_steps}, gradient_accumulation_steps=1 is "
        f"the same global step as {size} x {num_micro_steps} with fewer kernels, {cost} ({command})"
    )
    return [note]


def bytes_of_joining(model: MetaModel, zero: Zero, batch: Batch, num_micro_steps: int) -> int:
    """What an update's peak grows by when so many micro-steps are made one.

    Args:
        model: Whose layers are counted.
        zero: How it is cut, and whether activations are kept.
        batch: Of one of the micro-steps.
        num_micro_steps: Of the global step.
    """
    joined = replace(batch, groups_per_micro_step=batch.groups_per_micro_step * num_micro_steps)
    one, all_of_them = (
        activation_bytes(model, zero, own) + head_bytes(model, zero, own) for own in (batch, joined)
    )
    return all_of_them - one


def _config_of(settings: Any) -> Any:
    """The policy's configuration, or None where it is not at hand."""
    try:
        return find_config(str(settings.model.model_name_or_path))
    except (ConfigError, ValueError, OSError):
        return None


def _prompt_of(config: Any, max_pixels: int | None) -> Batch:
    """A prompt with the largest image, where its tokens follow from its pixels."""
    vision = config.vision_config
    patch, merge = (getattr(vision, name, None) for name in ("patch_size", "spatial_merge_size"))
    if max_pixels is None or not isinstance(patch, int) or not isinstance(merge, int):
        return Batch()
    image_tokens = max_pixels // (patch * merge) ** 2
    return Batch(prompt_tokens=image_tokens + _WORDS, image_tokens=image_tokens)
