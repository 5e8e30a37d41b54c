"""The checks of settings: what a run's plan and the trainer both ask, before weights are loaded."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from trl import GRPOConfig

from grpo_stream.boxes import Frame
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.frames import answer_frame_for
from grpo_stream.grounding.prompts import PromptTemplate, load_template
from grpo_stream.grounding.rewards import load_reward
from grpo_stream.images import ResizeRule
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.world import World
from grpo_stream.train.setup.accelerate_launch import (
    check_launcher,
    deepspeed_config_of,
    precision_of,
)
from grpo_stream.train.setup.arguments import LogArguments, PackedAttention, SharedPrefix
from grpo_stream.train.setup.deepspeed_config import (
    check_batch_arithmetic,
    check_zero_config,
    notes_of_sums,
)
from grpo_stream.train.setup.engine_checks import check_engine
from grpo_stream.train.setup.trackers import check_trackers
from grpo_stream.train.setup.unsupported_settings import REFUSED

RewardFunction = Callable[..., list[float | None]]
"""A function with trl's signature."""
RewardArgument = RewardFunction | str | Sequence[RewardFunction | str]
"""One or several, each as it is or by name."""

# Values of shared_prefix and of shared_prefix_attention.
SHARED_PREFIX, PACKED_ATTENTION = get_args(SharedPrefix), get_args(PackedAttention)


@dataclass(frozen=True)
class CheckedSettings:
    """What the checks work out on their way."""

    num_prompts: int
    """Prompts per generation batch, over all ranks, that are trained on."""
    num_lanes: int
    """Prompts per generation batch that are read: more under ``refill_zero_variance``."""
    packed_attention: str
    """How packed groups attend: ``two_part``, ``dense`` or ``flex``."""
    rewards: list[RewardFunction]
    """The reward functions, those given by name too."""
    notes: list[str]
    """What works, but should be known."""


def check_settings(
    args: GRPOConfig,
    log: LogArguments,
    reward_funcs: RewardArgument,
    *,
    shared_prefix: str,
    shared_prefix_attention: str,
    refill_zero_variance: int,
    has_eval_data: bool,
    num_ranks: int | None = None,
) -> CheckedSettings:
    """Checks what needs neither a model nor data.

    Args:
        args: trl's settings.
        log: How the run is watched.
        reward_funcs: Functions with trl's signature, or names for ``load_reward``; or one of them.
        shared_prefix: One of :data:`SHARED_PREFIX`.
        shared_prefix_attention: One of :data:`PACKED_ATTENTION`.
        refill_zero_variance: How many times more prompts than are trained on may be sampled.
        has_eval_data: Whether there is something to evaluate on.
        num_ranks: World size to check for; None: this launch's.

    Raises:
        ConfigError: a setting that cannot work, named with a value that does.
    """
    num_ranks = num_ranks or args.world_size
    check_launcher()
    check_supported(args)
    log.check()
    check_refill(refill_zero_variance, args)
    if shared_prefix not in SHARED_PREFIX:
        expected = f"must be one of {', '.join(SHARED_PREFIX)}"
        raise ConfigError("shared_prefix", shared_prefix, expected)
    attention = packed_attention(shared_prefix_attention, args.device.type)
    rewards = _check_rewards(args, reward_funcs)
    if has_eval_data:
        num_eval_lanes(args, num_ranks)
    elif args.eval_strategy != "no":
        expected = "needs eval_shards=DIR_OR_URL (in Python eval_dataset=...); or use 'no'"
        raise ConfigError("eval_strategy", str(args.eval_strategy), expected)
    num_prompts = check_batch_arithmetic(
        world_size=num_ranks,
        per_device_train_batch_size=args.per_device_train_batch_size,
        steps_per_generation=args.steps_per_generation,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        num_generations=args.num_generations,
        num_iterations=args.num_iterations,
    )
    num_lanes = num_prompts * (1 + refill_zero_variance)
    notes = check_zero(args, num_ranks)
    return CheckedSettings(num_prompts, num_lanes, attention, rewards, notes)


def check_policy(
    config: Any, args: GRPOConfig, *, prompt_template: str, answer_frame: str | None
) -> tuple[PromptTemplate, Frame]:
    """Checks what the policy's own configuration decides.

    Args:
        config: The policy's configuration (transformers 5.23).
        args: trl's settings.
        prompt_template: Name or YAML file of the words around an instruction.
        answer_frame: Frame that the model answers in; None takes the model family's.

    Returns:
        The template and the frame.

    Raises:
        ConfigError: a setting that cannot work with this policy, named with a value that does.
    """
    check_balancing_loss(config, args)
    check_engine(config.model_type, args)
    template = load_template(prompt_template, config.model_type)
    return template, answer_frame_for(config.model_type, answer_frame)


def check_ways(shared_prefix: str, ways: Sequence[Any], reasons: Sequence[str]) -> None:
    """Refuses ``shared_prefix`` where it was asked for and the model cannot do it.

    Args:
        shared_prefix: The setting.
        ways: How groups may be computed.
        reasons: Why not in others.

    Raises:
        ConfigError: there is no way left, with the reasons.
    """
    if not ways:
        raise ConfigError(
            "shared_prefix", shared_prefix, f"cannot be: {'; '.join(reasons)}; use 'auto'"
        )


def check_stream(
    stream: PromptStream, args: GRPOConfig, num_lanes: int, rule: ResizeRule | None
) -> None:
    """Checks that a stream delivers what this rank of the run trains on.

    Args:
        stream: To be read.
        args: trl's settings.
        num_lanes: Prompts per generation batch over all ranks.
        rule: Sizes that the model takes, whose images are cut into patches as they come; None
            where a collator or the processor resizes.

    Raises:
        ConfigError: naming the setting of the stream.
    """
    if stream.config.num_lanes != num_lanes:
        raise ConfigError(
            "num_lanes",
            stream.config.num_lanes,
            f"the batch sizes give {num_lanes} prompts per generation batch (completions over "
            f"all ranks / num_generations); use num_lanes={num_lanes}",
        )
    if stream.world != world_of(args):
        raise ConfigError("world", stream.world, f"the trainer runs as {world_of(args)}")
    given = stream.config.resize
    if rule is not None and (given is None or given.multiple % rule.multiple):
        raise ConfigError(
            "resize",
            given,
            f"the model takes sizes in multiples of {rule.multiple}; use StreamConfig(resize="
            "resize_rule(image_processor))",
        )


def check_refill(refill: int, args: GRPOConfig) -> None:
    """Checks the setting ``refill_zero_variance``.

    Raises:
        ConfigError: it is negative, or advantages are not those of a group by itself.
    """
    if refill < 0:
        expected = "must be 0, or how many times more prompts may be sampled, for example 2"
        raise ConfigError("refill_zero_variance", refill, expected)
    if not refill:
        return
    for name, wrong, right in (
        ("scale_rewards", "batch", "group"),
        ("multi_objective_aggregation", "normalize_then_sum", "sum_then_normalize"),
    ):
        if getattr(args, name) == wrong:
            expected = (
                "makes advantages of a whole batch, which refill_zero_variance changes later; use "
                f"{right!r}"
            )
            raise ConfigError(name, wrong, expected)


def packed_attention(wanted: str, device_type: str) -> str:
    """How packed groups attend: ``two_part``, ``dense`` or ``flex``.

    Args:
        wanted: ``shared_prefix_attention``.
        device_type: ``cpu``, ``cuda``, ...

    Raises:
        ConfigError: there is no such attention, or not on that device.
    """
    if wanted not in PACKED_ATTENTION:
        expected = f"must be one of {', '.join(PACKED_ATTENTION)}"
        raise ConfigError("shared_prefix_attention", wanted, expected)
    if wanted == "flex" and device_type == "cpu":
        expected = "has no backward pass on the CPU (torch 2.13); use two_part"
        raise ConfigError("shared_prefix_attention", wanted, expected)
    # Measured on the CPU, two_part is the fastest at every length (docs/shared_prefix.md).
    return "two_part" if wanted == "auto" else wanted


def check_supported(args: GRPOConfig) -> None:
    """Refuses what trl offers but the trainer here cannot do.

    Raises:
        ConfigError: naming the setting.
    """
    if args.use_vllm and importlib.util.find_spec("vllm") is None:
        expected = "needs the package vllm: pip install 'trl[vllm]'; or use False"
        raise ConfigError("use_vllm", True, expected)
    check_trackers(args.report_to)
    for name, (works, why) in REFUSED.items():
        value = getattr(args, name)
        if (value or None) != (works or None):
            raise ConfigError(name, value, f"{why}; use {works}")


def check_balancing_loss(config: Any, args: GRPOConfig) -> None:
    """Refuses a balancing loss where there are no experts, before trl (1.16) does.

    Args:
        config: The model's configuration (transformers 5.23).
        args: With ``router_aux_loss_coef``; None takes the model's own.

    Raises:
        ConfigError: naming that setting.
    """
    coef = args.router_aux_loss_coef
    if coef and not hasattr(config.get_text_config(), "output_router_logits"):
        expected = f"is for experts, and model_type {config.model_type!r} gives no router logits"
        raise ConfigError("router_aux_loss_coef", coef, f"{expected}; use 0")


def num_eval_lanes(args: GRPOConfig, num_ranks: int | None = None) -> int:
    """Prompts per evaluation batch over all ranks.

    Args:
        args: trl's settings.
        num_ranks: World size; None: this launch's.

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
    num_ranks = num_ranks or args.world_size
    num_lanes: int = num_ranks * args.per_device_eval_batch_size // num_generations
    return num_lanes


def world_of(args: GRPOConfig) -> World:
    """This process among the run's, as transformers' settings have found it."""
    return World(args.process_index, args.world_size, args.local_process_index)


def _check_rewards(args: GRPOConfig, reward_funcs: RewardArgument) -> list[RewardFunction]:
    given: list[RewardFunction | str] = (
        [reward_funcs]
        if isinstance(reward_funcs, str) or callable(reward_funcs)
        else list(reward_funcs)
    )
    weights = args.reward_weights
    if weights is not None and len(weights) != len(given):
        expected = f"must be as many as reward_funcs, {len(given)}: one weight each"
        raise ConfigError("reward_weights", weights, expected)
    return [load_reward(one) if isinstance(one, str) else one for one in given]


def check_zero(args: GRPOConfig, num_ranks: int) -> list[str]:
    """Checks the DeepSpeed settings, if any; what works but should be known.

    Raises:
        ConfigError: a value in them that cannot work with the run's.
    """
    config = deepspeed_config_of(args)
    if config is None:
        return []
    precision = precision_of(args)
    notes = check_zero_config(
        config,
        per_device_train_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        world_size=num_ranks,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        max_grad_norm=args.max_grad_norm,
    )
    num_micro_steps, is_16_bits = args.gradient_accumulation_steps, precision != "float32"
    return notes + notes_of_sums(config, num_micro_steps, is_16_bits=is_16_bits)
