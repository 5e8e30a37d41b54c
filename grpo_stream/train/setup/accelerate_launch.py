"""What ``accelerate launch`` asks for through the environment, which settings do not show.

Its file chooses what wraps the model (DeepSpeed, FSDP, ...) and the precision; transformers (5.23)
and accelerate (1.15) read that from variables, whatever the run's own settings say.
"""

import os

from trl import GRPOConfig

from grpo_stream.errors import ConfigError

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
    name: str = args.mixed_precision
    return "float32" if name == "no" else name
