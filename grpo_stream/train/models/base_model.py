"""The model of transformers inside what accelerate, DeepSpeed and PEFT put around it."""

from typing import Any

from accelerate.utils import extract_model_from_parallel


def base_model(model: Any) -> Any:
    """The model of transformers, through wrappers and LoRA."""
    model = extract_model_from_parallel(model)
    # PEFT's ``generate`` is the inner model's own, which has a ``peft_config`` as well.
    return model.get_base_model() if hasattr(model, "get_base_model") else model
