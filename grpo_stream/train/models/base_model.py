"""The model of transformers inside what accelerate, DeepSpeed and PEFT put around it."""

import functools
from typing import Any

from accelerate.utils import extract_model_from_parallel, imports
from transformers import PreTrainedModel

# accelerate 1.15 asks a dozen times in each micro-step whether DeepSpeed is installed, and parses
# the package's whole description for each answer: a sixth of a tiny policy's training.
imports._is_package_available = functools.cache(imports._is_package_available)  # noqa: SLF001


def unwrapped(model: Any) -> Any:
    """The model without accelerate's and DeepSpeed's wrappers; LoRA's stays.

    Replaces accelerate 1.15's ``extract_model_from_parallel`` for a model that has none: it looks
    through all modules for compiled ones before it gives the model back.
    """
    return model if isinstance(model, PreTrainedModel) else extract_model_from_parallel(model)


def base_model(model: Any) -> Any:
    """The model of transformers, through wrappers and LoRA."""
    model = unwrapped(model)
    # PEFT's ``generate`` is the inner model's own, which has a ``peft_config`` as well.
    return model.get_base_model() if hasattr(model, "get_base_model") else model
