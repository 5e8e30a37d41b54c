"""Warnings that the pinned libraries give about one another, which a user can do nothing about."""

import re
import warnings

_RENAMED_IN_TRANSFORMERS = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "gradient_checkpointing_enable": "activation_checkpointing_enable",
    "gradient_checkpointing_disable": "activation_checkpointing_disable",
    "is_gradient_checkpointing": "is_activation_checkpointing",
}
"""What trl 1.16 sets and calls, and transformers 5.23 calls otherwise."""
_RENAMED_IN_TORCH = {
    "all_gather_into_tensor": "all_gather_single",
    "reduce_scatter_tensor": "reduce_scatter_single",
}
"""What accelerate 1.15 and DeepSpeed 0.19 call, and torch 2.13 calls otherwise."""

KNOWN = [
    *(
        f"`{old}` is deprecated and will be removed in v6. Use `{new}` instead."
        for old, new in _RENAMED_IN_TRANSFORMERS.items()
    ),
    *(
        f"`torch.distributed.{old}` is deprecated. Please use `torch.distributed.{new}` instead."
        for old, new in _RENAMED_IN_TORCH.items()
    ),
]
"""Their texts."""


def ignore_known_warnings() -> None:
    """Keeps exactly these out of the log; every other warning is shown."""
    for text in KNOWN:
        warnings.filterwarnings("ignore", f"{re.escape(text)}$", FutureWarning)
