"""The former place of :mod:`grpo_stream.train.models.policy`; for version 0.1 alone."""

import warnings

from grpo_stream.train.models.policy import (
    Qwen2_5_VLForConditionalGenerationWithLogits,
    forward_keeping_logits,
    load_policy,
    policy_config,
)

__all__ = [
    "Qwen2_5_VLForConditionalGenerationWithLogits",
    "forward_keeping_logits",
    "load_policy",
    "policy_config",
]

warnings.warn(
    "grpo_stream.train.model has moved: import from grpo_stream.train.models.policy",
    DeprecationWarning,
    stacklevel=2,
)
