"""The arithmetic that a DeepSpeed file and a run's settings must share, checked before loading.

DeepSpeed, transformers and trl each check a part of this, after the model is loaded or with an
assertion that names their own variables. Here it costs nothing and the message names the setting.
"""

import json
import math
from pathlib import Path
from typing import Any

from grpo_stream.errors import ConfigError

_AUTO = "auto"
_DEVICES = ("none", "cpu", "nvme")


def load_zero_config(path: str | Path) -> dict[str, Any]:
    """Reads a DeepSpeed JSON file.

    Raises:
        ConfigError: there is no such file, or it holds no JSON object.
    """
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        expected = f"cannot be read ({error.strerror}); use for example ds_configs/zero3.json"
        raise ConfigError("deepspeed", str(path), expected) from error
    except ValueError as error:  # neither JSON nor, below it, UTF-8
        raise ConfigError("deepspeed", str(path), f"must be a JSON file, but: {error}") from error
    if not isinstance(config, dict):
        expected = 'must hold a JSON object such as {"zero_optimization": {"stage": 3}}'
        raise ConfigError("deepspeed", str(path), expected)
    return config


def check_zero_config(
    config: dict[str, Any],
    *,
    per_device_train_batch_size: int,
    gradient_accumulation_steps: int,
    world_size: int,
    bf16: bool,
    fp16: bool,
    max_grad_norm: float | None = None,
) -> list[str]:
    """Checks a DeepSpeed configuration against the run's settings.

    ``"auto"`` agrees with everything: transformers fills it in. A missing value does not: without
    ``gradient_accumulation_steps`` accelerate 1.15 takes 1, without ``gradient_clipping`` deepspeed
    0.19 takes 1.0, whatever the run says. Without ``bf16`` or ``fp16`` the run's precision holds.

    Args:
        config: The file's content, as :func:`load_zero_config` returns it.
        per_device_train_batch_size: Completions in a micro-batch of one rank.
        gradient_accumulation_steps: Micro-batches in a global step.
        world_size: Number of ranks.
        bf16: Whether the run computes in bfloat16. trl 1.16 sets it unless told otherwise.
        fp16: Whether the run computes in float16.
        max_grad_norm: Largest norm of the gradient; None leaves it unchecked.

    Returns:
        What works, but should be known: a sentence each, for the log.

    Raises:
        ConfigError: the two cannot run together, or DeepSpeed does not know a ZeRO setting.
    """
    stage = _check_stage(config)
    zero = config["zero_optimization"]
    _check_offload(zero, stage)
    _check_names(zero)
    _check_second_copy(zero, world_size)
    micro, accumulation = per_device_train_batch_size, gradient_accumulation_steps
    _check_batch(config, micro=micro, accumulation=accumulation, world_size=world_size)
    _check_precision(config, bf16=bf16, fp16=fp16)
    _check_guards(config)
    _check_sums(config, stage, is_16_bits=bf16 or fp16)
    if max_grad_norm is not None and config.get("gradient_clipping", 1.0) not in (
        _AUTO,
        max_grad_norm,
    ):
        expected = f'the run has max_grad_norm={max_grad_norm}; write that or "auto" here'
        raise ConfigError("gradient_clipping", config.get("gradient_clipping"), expected)
    return _notes(zero, stage)


def check_batch_arithmetic(
    *,
    world_size: int,
    per_device_train_batch_size: int,
    steps_per_generation: int,
    gradient_accumulation_steps: int,
    num_generations: int,
    num_iterations: int = 1,
) -> int:
    """Prompts in a generation batch, over all ranks.

    A generation batch has ``world_size * per_device_train_batch_size * steps_per_generation``
    completions, ``num_generations`` for each prompt. trl 1.16 asks only that the product is a
    multiple of ``num_generations``. Here each rank's share must be one, since a prompt's group
    lives on one rank.

    Example:
        >>> check_batch_arithmetic(world_size=2, per_device_train_batch_size=8,
        ...     steps_per_generation=4, gradient_accumulation_steps=4, num_generations=8)
        8

    Raises:
        ConfigError: a number is too small, a group would be split between ranks, or a global
            step would begin in one generation batch and end in the next, so that no checkpoint
            could fall between two generation batches.
    """
    for name, value, least in (
        ("world_size", world_size, 1),
        ("per_device_train_batch_size", per_device_train_batch_size, 1),
        ("steps_per_generation", steps_per_generation, 1),
        ("gradient_accumulation_steps", gradient_accumulation_steps, 1),
        ("num_generations", num_generations, 2),
        ("num_iterations", num_iterations, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(name, value, f"must be a whole number of at least {least}")

    per_rank = per_device_train_batch_size * steps_per_generation
    if per_rank % num_generations:
        micro = _next_fitting(per_device_train_batch_size, steps_per_generation, num_generations)
        steps = _next_fitting(steps_per_generation, per_device_train_batch_size, num_generations)
        divisors = [n for n in range(2, per_rank + 1) if per_rank % n == 0]
        ways = [f"per_device_train_batch_size={micro}", f"steps_per_generation={steps}"]
        if divisors:
            nearest = min(divisors, key=lambda divisor: abs(divisor - num_generations))
            ways.insert(0, f"num_generations={nearest}")
        raise ConfigError(
            "num_generations",
            num_generations,
            f"must divide the {per_rank} completions of one rank (per_device_train_batch_size="
            f"{per_device_train_batch_size} x steps_per_generation={steps_per_generation}), as a "
            f"group is never split between ranks; use {' or '.join(ways)}",
        )

    generate_every = steps_per_generation * num_iterations
    longer = max(generate_every, gradient_accumulation_steps)
    shorter = min(generate_every, gradient_accumulation_steps)
    if longer % shorter:
        raise ConfigError(
            "gradient_accumulation_steps",
            gradient_accumulation_steps,
            f"must divide or be a multiple of the {generate_every} micro-steps between two "
            f"generation batches (steps_per_generation={steps_per_generation} x num_iterations="
            f"{num_iterations}), or global steps straddle them; use {generate_every}",
        )
    return world_size * per_rank // num_generations


def _next_fitting(value: int, other: int, multiple: int) -> int:
    """The least number from ``value`` up whose product with ``other`` is a multiple."""
    step = multiple // math.gcd(multiple, other)
    return math.ceil(value / step) * step


def _check_stage(config: dict[str, Any]) -> int:
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        raise ConfigError("zero_optimization", zero, 'must be an object such as {"stage": 3}')
    stage = zero.get("stage")
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        expected = "must be 0, 1, 2 or 3; 3 partitions the weights too"
        raise ConfigError("zero_optimization.stage", stage, expected)
    return int(stage)


def _check_offload(zero: dict[str, Any], stage: int) -> None:
    for name, least_stage in (("offload_optimizer", 1), ("offload_param", 3)):
        section = zero.get(name)
        if section is None:
            continue
        field = f"zero_optimization.{name}"
        if not isinstance(section, dict):
            raise ConfigError(field, section, 'must be an object such as {"device": "cpu"}')
        device = section.get("device", "none")
        if device not in _DEVICES:
            raise ConfigError(f"{field}.device", device, f"must be one of {', '.join(_DEVICES)}")
        if device != "none" and stage < least_stage:
            expected = f'needs stage {least_stage} or more, not {stage}; use "none" or stage 3'
            raise ConfigError(f"{field}.device", device, expected)
        if device == "nvme" and not section.get("nvme_path"):
            expected = 'must name a folder on the NVMe disk, such as "/local_nvme", or device "cpu"'
            raise ConfigError(f"{field}.nvme_path", section.get("nvme_path"), expected)


def _check_second_copy(zero: dict[str, Any], world_size: int) -> None:
    name = "zero_hpz_partition_size"
    size = zero.get(name, 1)
    if size > 1 and world_size % min(size, world_size):
        expected = (
            f"must divide the {world_size} ranks: the GPUs of a node, or 1 for no second copy"
        )
        raise ConfigError(f"zero_optimization.{name}", size, expected)


def _check_names(zero: dict[str, Any]) -> None:
    """Lets DeepSpeed judge its own settings: a misspelt name would else surface after loading."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # noqa: PLC0415 - seconds
    from pydantic import ValidationError  # noqa: PLC0415

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in ("zero_optimization", *fault["loc"]))
        expected = f"DeepSpeed says: {fault['msg']}; use a name and value of ds_configs/README.md"
        raise ConfigError(field, fault["input"], expected) from error


def _check_batch(config: dict[str, Any], *, micro: int, accumulation: int, world_size: int) -> None:
    a, b = f"per_device_train_batch_size={micro}", f"gradient_accumulation_steps={accumulation}"
    total = micro * accumulation * world_size
    for name, if_missing, expected, in_words in (
        ("train_micro_batch_size_per_gpu", None, micro, a),
        ("gradient_accumulation_steps", 1, accumulation, b),
        ("train_batch_size", total, total, f"{a} x {b} x {world_size} ranks = {total}"),
    ):
        if config.get(name, if_missing) not in (_AUTO, expected):
            expected_words = f'the run has {in_words}; write {expected} or "auto" here'
            raise ConfigError(name, config.get(name), expected_words)


def _check_precision(config: dict[str, Any], *, bf16: bool, fp16: bool) -> None:
    if bf16 and fp16:
        raise ConfigError("fp16", fp16, "bf16 is on too; use bf16: true, fp16: false")
    enabled = {}
    for name in ("bf16", "fp16"):
        section = config.get(name, {})
        if not isinstance(section, dict):
            raise ConfigError(name, section, 'must be an object such as {"enabled": "auto"}')
        enabled[name] = section.get("enabled", _AUTO)
    if enabled["bf16"] is True and enabled["fp16"] is True:
        raise ConfigError("fp16.enabled", True, 'bf16.enabled is true too; use "auto" for both')
    for name, run_has in (("bf16", bf16), ("fp16", fp16)):
        value = enabled[name]
        if value != _AUTO and value is not run_has:
            wanted = str(run_has).lower()
            other = "true" if value is True else "false"
            raise ConfigError(
                f"{name}.enabled",
                value,
                f"the run has {name}: {wanted}; write {name}: {other} in the run's settings, "
                f'or "auto" here',
            )


def _check_guards(config: dict[str, Any]) -> None:
    """Refuses what would let weights be rounded away, or a gradient through that is not finite."""
    for section, name, right, why in (
        ("bf16", "bf16_master_weights_and_grads", False, "keeps no weights in 32 bits"),
        ("fp16", "fp16_master_weights_and_grads", False, "keeps no weights in 32 bits"),
        ("bf16", "check_grad_overflow", True, "lets a gradient into weights that is not finite"),
        ("zero_optimization", "compute_grad_norm", True, "leaves gradients unchecked"),
    ):
        value = (config.get(section) or {}).get(name, right)
        if value is not right:
            raise ConfigError(f"{section}.{name}", value, f"{why}; use {str(right).lower()}")


def sums_in_float32(config: dict[str, Any]) -> bool:
    """Whether gradients of 16 bits are summed over micro-steps in 32.

    Args:
        config: A DeepSpeed file's content (0.19, ``data_types.grad_accum_dtype``).
    """
    return (config.get("data_types") or {}).get("grad_accum_dtype") == "fp32"


def notes_of_sums(config: dict[str, Any], num_micro_steps: int, *, is_16_bits: bool) -> list[str]:
    """What is lost where gradients of many micro-steps are summed in 16 bits.

    Args:
        config: A DeepSpeed file's content.
        num_micro_steps: In a global step.
        is_16_bits: Whether the model computes in bfloat16 or float16.
    """
    if num_micro_steps == 1 or not is_16_bits or sums_in_float32(config):
        return []
    note = (
        f"gradients of {num_micro_steps} micro-steps are summed in 16 bits; "
        '"data_types": {"grad_accum_dtype": "fp32"} in the DeepSpeed file sums them in 32'
    )
    return [note]


def _check_sums(config: dict[str, Any], stage: int, *, is_16_bits: bool) -> None:
    section = config.get("data_types", {})
    if not isinstance(section, dict):
        raise ConfigError("data_types", section, 'must be {"grad_accum_dtype": "fp32"}')
    value = section.get("grad_accum_dtype")
    if value not in (None, "fp32", "bf16", "fp16"):
        raise ConfigError("data_types.grad_accum_dtype", value, 'must be "fp32", or left out')
    if value == "fp32" and stage == 0 and is_16_bits:  # DeepSpeed's engine: "unsupported mix"
        raise ConfigError("data_types.grad_accum_dtype", value, "needs stage 1, 2 or 3")


def _notes(zero: dict[str, Any], stage: int) -> list[str]:
    notes = []
    if stage < 3:
        notes.append(f"ZeRO stage {stage}: every rank holds all weights; stage 3 partitions them")
    elif zero.get("stage3_gather_16bit_weights_on_model_save", False) is not True:
        notes.append(
            "stage3_gather_16bit_weights_on_model_save is off: checkpoints hold partitioned "
            "weights only, and the model must be put together with DeepSpeed's zero_to_fp32.py"
        )
    return notes
