"""The policy: loading it, and the class name that older scripts of this field use."""

import functools
import importlib.util
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.base_model import base_model
from grpo_stream.train.models.expert_weights import use_whole_shapes
from grpo_stream.train.models.model_path import (
    EXAMPLE,
    base_model_of,
    cannot_load,
    check_model_path,
)


class Qwen2_5_VLForConditionalGenerationWithLogits(Qwen2_5_VLForConditionalGeneration):  # noqa: N801
    """``Qwen2_5_VLForConditionalGeneration`` that always honours ``logits_to_keep``.

    Everything is passed on to the real forward. Some versions of it do not know
    ``logits_to_keep``, and some silently ignore it; here the logits that come back are cut to the
    positions that were asked for in both cases. Checkpoints are saved under the real class's name,
    so that any other program loads them.
    """

    @functools.wraps(Qwen2_5_VLForConditionalGeneration.forward)
    def forward(self, *args: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:  # noqa: D102
        return forward_keeping_logits(
            super().forward, *args, logits_to_keep=logits_to_keep, **kwargs
        )

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Saves under the architecture name of the real class."""
        super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        if kwargs.get("is_main_process", True) and path.is_file():
            config = json.loads(path.read_text())
            config["architectures"] = [Qwen2_5_VLForConditionalGeneration.__name__]
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


# transformers (5.23) brings a checkpoint's names of weights up to date by the name of the class.
# Under a name that it does not know, a policy would start from random weights.
register_checkpoint_conversion_mapping(
    Qwen2_5_VLForConditionalGenerationWithLogits.__name__,
    get_checkpoint_conversion_mapping(Qwen2_5_VLForConditionalGeneration.__name__) or [],
    overwrite=True,
)
use_whole_shapes()


def forward_keeping_logits(forward: Any, *args: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
    """Calls ``forward`` and returns at most the last ``logits_to_keep`` logits.

    Args:
        forward: A causal language model's forward, whether or not it knows ``logits_to_keep``.
        *args: Passed on.
        logits_to_keep: 0 for all positions, a number of last positions, or an index tensor of
            positions, as in transformers 5.23.
        **kwargs: Passed on.

    Returns:
        What ``forward`` returns, its ``logits`` of shape (batch, kept positions, vocabulary).
    """
    parameters = inspect.signature(forward).parameters
    knows = "logits_to_keep" in parameters
    if knows:
        kwargs["logits_to_keep"] = logits_to_keep
    output = forward(*args, **kwargs)
    is_count = isinstance(logits_to_keep, int)
    wanted = logits_to_keep if is_count else len(logits_to_keep)
    logits = getattr(output, "logits", None)
    if logits is not None and wanted and logits.shape[1] > wanted:
        output.logits = logits[:, -wanted:] if is_count else logits[:, logits_to_keep]
    return output


_PACKED = ("position_ids", "past_key_values", "use_cache", "logits_to_keep", "mm_encoder_outputs")


def input_names(*, has_patches: bool, is_packed: bool) -> tuple[str, ...]:
    """What a model is handed by keyword, in training and in sampling.

    Args:
        has_patches: Whether images are Qwen-VL's patches, beside which types of tokens are needed.
        is_packed: Whether groups share their prefix.
    """
    patches = ("image_grid_thw", "mm_token_type_ids") if has_patches else ()
    packed = _PACKED if is_packed else ()
    return ("input_ids", "attention_mask", "pixel_values", *patches, *packed)


def check_inputs(model: Any, names: Iterable[str]) -> None:
    """Refuses a model that would take an input by ``**kwargs`` and make nothing of it.

    A model passes what it does not name on to the module below. ``mm_encoder_outputs``, for one,
    came with transformers 5.18: before, a prompt was scored without its image.

    Args:
        model: An image-and-text model, or LoRA around it.
        names: What it will be handed by keyword.

    Raises:
        ConfigError: names that neither the model nor a module that it passes them to has.
    """
    base = base_model(model)
    backbone = getattr(base, "model", None)
    parts = filter(None, (base, backbone, getattr(backbone, "language_model", None)))
    known = {name for part in parts for name in inspect.signature(type(part).forward).parameters}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            "model_name_or_path",
            type(base).__name__,
            f"would ignore {', '.join(unknown)} in transformers {transformers.__version__}; use "
            "transformers>=5.18, or another model",
        )


def policy_config(model_id: str | Path, revision: str = "main") -> Any:
    """The configuration of an image-and-text model.

    Args:
        model_id: Folder or hub id; for the folder of a LoRA adapter its base model's is given.
        revision: Branch, tag or commit of a hub id; a folder has none.

    Raises:
        ConfigError: there is none, or it names no image-and-text model that transformers knows.
    """
    check_model_path(model_id)
    model_id = base_model_of(model_id) or model_id
    try:
        config = AutoConfig.from_pretrained(model_id, revision=revision)
    except (OSError, ValueError) as error:
        raise cannot_load(model_id, "cannot be loaded", error) from error
    name = (config.architectures or [""])[0]
    if not hasattr(transformers, name) or not hasattr(config, "vision_config"):
        raise ConfigError(
            "model_name_or_path",
            str(model_id),
            f"its architecture {name!r} (model_type {config.model_type!r}) is no image-and-text "
            f"model of transformers {transformers.__version__}; use for example {EXAMPLE}",
        )
    return config


def load_policy(model_id: str | Path, **model_init_kwargs: Any) -> Any:
    """The model of a folder or hub id, with the class that its configuration names.

    A LoRA adapter is merged into its base model.

    Raises:
        ConfigError: see :func:`policy_config`; or the package peft is missing.
    """
    model = load_adapter(model_id, is_trainable=False, **model_init_kwargs)
    if model is not None:
        return model.merge_and_unload()
    architecture = getattr(transformers, policy_config(model_id).architectures[0])
    return architecture.from_pretrained(model_id, **model_init_kwargs)


def load_adapter(model_id: str | Path, *, is_trainable: bool, **model_init_kwargs: Any) -> Any:
    """A LoRA adapter on its base model, as peft has it; None where the folder holds none.

    Args:
        model_id: The adapter's folder.
        is_trainable: Whether its weights are to be trained further.
        **model_init_kwargs: For loading the base model.

    Raises:
        ConfigError: the package peft is missing, or the base model.
    """
    base = base_model_of(model_id)
    if base is None:
        return None
    if importlib.util.find_spec("peft") is None:
        expected = "holds a LoRA adapter, which needs peft: pip install 'grpo_stream[lora]'"
        raise ConfigError("model_name_or_path", str(model_id), expected)
    from peft import PeftModel  # noqa: PLC0415 - an extra

    loaded = load_policy(base, **model_init_kwargs)
    return PeftModel.from_pretrained(loaded, model_id, is_trainable=is_trainable)


def continued_adapter(model: Any, args: Any) -> Any:
    """A folder with a LoRA adapter as a model that trl (1.16) trains further; else ``model``.

    Args:
        model: What a trainer is given.
        args: trl's settings. Their ``model_init_kwargs`` are used up with such a folder: trl warns
            of them where it gets a model.
    """
    if not isinstance(model, str):
        return model
    loaded = load_adapter(model, is_trainable=True, **(args.model_init_kwargs or {}))
    if loaded is None:
        return model
    args.model_init_kwargs = None
    return loaded
