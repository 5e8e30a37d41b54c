"""The setting ``decode``: how a rollout computes its tokens, and why so."""

from typing import Any, get_args

from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.train.checkpoints.universal import zero_stage_of
from grpo_stream.train.setup.arguments import Decode

DECODE = get_args(Decode)


def chosen_decode(wanted: str, args: GRPOConfig, device: str) -> tuple[str, str]:
    """``eager`` or ``compiled``, and the reason.

    Args:
        wanted: The setting.
        args: trl's settings.
        device: Type of the device.

    Raises:
        ConfigError: there is no such setting.
    """
    check_decode(wanted)
    if args.use_vllm:
        return "eager", "vLLM samples"
    if wanted == "eager":
        return wanted, "as set"
    if zero_stage_of(args) == 3 and not args.ds3_gather_for_generation:
        return "eager", "without ds3_gather_for_generation no rank has whole weights"
    if wanted == "compiled":
        return wanted, "as set; of packed and forked groups"
    if device == "cuda":
        return "compiled", "of packed and forked groups: a GPU would wait for launches"
    return "eager", f"on {device}; compiled has to be asked for"


def check_decode(wanted: Any) -> None:
    """Refuses what is no such setting.

    Raises:
        ConfigError: naming those that are.
    """
    if wanted not in DECODE:
        raise ConfigError("decode", wanted, f"must be one of {', '.join(DECODE)}")
