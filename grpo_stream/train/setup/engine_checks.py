"""What vLLM can sample for, asked before anything is loaded."""

from typing import Any

from grpo_stream.errors import ConfigError
from grpo_stream.families import FAMILIES, NO_VLLM


def check_engine_family(model_type: str) -> None:
    """Refuses vLLM for a family that it cannot sample for.

    Args:
        model_type: Of the policy; one that nobody has tried is tried.

    Raises:
        ConfigError: naming ``use_vllm``, with the reason.
    """
    if model_type in NO_VLLM:
        expected = f"does not work for model_type {model_type!r}: {NO_VLLM[model_type]}; use False"
        raise ConfigError("use_vllm", True, expected)


def check_engine(model_type: str, args: Any) -> None:
    """Refuses what vLLM cannot do for a policy that is trained.

    Args:
        model_type: Of the policy.
        args: trl's settings, with ``use_vllm`` and ``vllm_mode``; those of supervised fine-tuning
            have neither.

    Raises:
        ConfigError: naming the setting.
    """
    if not getattr(args, "use_vllm", False):
        return
    check_engine_family(model_type)
    family = FAMILIES.get(model_type)
    if args.vllm_mode == "colocate" and args.vllm_model_impl != "vllm":
        expected = (
            "makes vLLM (0.30) change transformers' classes in this process, of which the policy "
            "is one; use 'vllm', or use_vllm=False"
        )
        raise ConfigError("vllm_model_impl", args.vllm_model_impl, expected)
    if args.vllm_mode == "server" and family is not None and family.processor is None:
        expected = (
            f"does not work for model_type {model_type!r}: a server tells only where an image of "
            "Qwen-VL's kind is; use 'colocate', or use_vllm=False"
        )
        raise ConfigError("vllm_mode", "server", expected)
