"""What ``accelerate launch`` asks for through the environment, which settings do not show.

Its file chooses what wraps the model (DeepSpeed, FSDP, ...) and the precision; transformers (5.23)
and accelerate (1.15) read that from variables, whatever the run's own settings say.
"""

import os
from typing import Any

from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.deepspeed_config import load_zero_config

_REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
_TRUE = frozenset({"1", "true", "yes", "y", "on", "t"})


def check_launcher() -> None:
    """Refuses what an accelerate file asks for and the trainer cannot do.

    Raises:
        ConfigError: naming the variable.
    """
    for name, what in _REFUSED.items():
        value = os.environ.get(name, "")
        if value.lower() in _TRUE:
            expected = (
                f"the accelerate file asks for {what}, which is not supported; use an accelerate "
                "file with distributed_type: DEEPSPEED, or none: deepspeed launch/train.py "
                "--deepspeed ds_configs/zero3.json"
            )
            raise ConfigError(name, value, expected)
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16", "fp16"):
        expected = "the accelerate file's mixed_precision must be no, bf16 or fp16; use bf16"
        raise ConfigError("ACCELERATE_MIXED_PRECISION", precision, expected)


def deepspeed_config_of(args: GRPOConfig) -> dict[str, Any] | None:
    """The DeepSpeed configuration that a run will be wrapped by, whoever has asked for it.

    The setting ``deepspeed`` wins over an accelerate file, of which ``accelerate launch`` tells
    through the environment (transformers 5.23, ``TrainingArguments.__post_init__``).

    Raises:
        ConfigError: the file of ``deepspeed`` cannot be read.
    """
    if isinstance(args.deepspeed, dict):
        return args.deepspeed
    if args.deepspeed:
        return load_zero_config(args.deepspeed)
    plugin = args.deepspeed_plugin
    config: dict[str, Any] | None = None if plugin is None else plugin.hf_ds_config.config
    return config


def keeps_float32(args: GRPOConfig) -> bool:
    """Whether DeepSpeed keeps a float32 copy of weights in 16 bits.

    ZeRO does from stage 1 on; at stage 0 the optimizer of a half precision that it was asked for.
    """
    config = deepspeed_config_of(args)
    if config is None:
        return False
    if (config.get("zero_optimization") or {}).get("stage", 0):
        return True
    asked = {name: (config.get(name) or {}).get("enabled", "auto") for name in ("bf16", "fp16")}
    return any(on is True or (on == "auto" and precision_of(args) == n) for n, on in asked.items())


def describe_deepspeed(args: GRPOConfig) -> str:
    """What DeepSpeed will do in a run, and who has asked for it."""
    if args.deepspeed:
        return str(args.deepspeed)
    if args.deepspeed_plugin is None:
        return "none"
    source = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE") or "its own file"
    return f"ZeRO stage {args.deepspeed_plugin.zero_stage}, by accelerate launch ({source})"


def precision_of(args: GRPOConfig) -> str:
    """``bf16``, ``fp16`` or ``float32``: of the settings, or of an accelerate file."""
    # As transformers (5.23) makes TrainingArguments.mixed_precision of them.
    name = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "float32" if name == "no" else name
