"""The model below the language-model head: what model families differ in is asked here alone."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from grpo_stream.errors import ConfigError
from grpo_stream.train.batches.collate import Media
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.base_model import base_model


def backbone_of(model: Any) -> Any:
    """The module below the language-model head, through wrappers and LoRA."""
    return base_model(model).model


def accepted_media(model: Any, media: Media) -> dict[str, Any]:
    """Of a processor's tensors, those that the model has an argument for.

    Some processors make more than their model reads (Gemma 3: ``num_crops``), and a model hands
    what it does not know down to its attention.
    """
    base = base_model(model)
    known = {
        *inspect.signature(base.forward).parameters,
        *inspect.signature(base.base_model.forward).parameters,
    }
    return {name: value for name, value in media.items() if name in known}


def prompt_positions(backbone: Any, groups: PromptGroups) -> list[torch.Tensor]:
    """M-RoPE positions of each prompt.

    Args:
        backbone: The module with ``get_rope_index`` (``Qwen2_5_VLModel``, transformers 5.23).
        groups: The prompts; ``groups.positions`` are given back where they are there.

    Returns:
        Per prompt int64, shape (3, prompt length).
    """
    if groups.positions is not None:
        return groups.positions
    return [
        backbone.get_rope_index(ids[None], types[None], image_grid_thw=own.get("image_grid_thw"))[
            0
        ][:, 0]
        for ids, types, own in zip(
            groups.prompt_ids, groups.mm_token_type_ids, groups.media, strict=True
        )
    ]


def freeze_vision_tower(model: Any) -> None:
    """Takes the vision tower out of training.

    Raises:
        ConfigError: LoRA has weights in it, which would stay as they are; or the model names no
            encoder of images.
    """
    base = base_model(model)
    tower = base.get_encoder("image")
    if tower in (base, base.base_model):
        expected = f"is not known for model_type {model.config.model_type!r}; use False"
        raise ConfigError("freeze_vision_tower", True, expected)
    if any(".lora_" in name for name, _ in tower.named_parameters()):
        expected = "LoRA has weights in the vision tower; leave it out of lora_target_modules"
        raise ConfigError("freeze_vision_tower", True, expected)
    tower.requires_grad_(requires_grad=False)


def has_frozen_vision_tower(model: Any) -> bool:
    """Whether training leaves the vision tower as it is; no where the model names none."""
    base = base_model(model)
    tower = base.get_encoder("image")
    is_known = tower not in (base, base.base_model)
    return is_known and not any(p.requires_grad for p in tower.parameters())


def encode_images(model: Any, groups: PromptGroups) -> tuple[torch.Tensor, ...]:
    """The vision tower's features, for a tower that does not change while they are in use.

    Args:
        model: The policy, unwrapped.
        groups: The prompts, with their pixels.

    Returns:
        Per prompt, shape (1 + D, image tokens, hidden size of the text model), without gradient:
        what is in the image tokens' places, and what Qwen3-VL adds to the first D layers of
        the text model (D = 0 elsewhere). Of a prompt without images nothing that is used.
    """
    images = groups.images() or groups.spare
    if images is None:
        return tuple(torch.empty(0) for _ in groups.media)
    with torch.no_grad():
        encoded = backbone_of(model).get_image_features(**images, return_dict=True)
    layers = [encoded.pooler_output, *(getattr(encoded, "deepstack_features", None) or [])]
    each = iter([torch.stack(own) for own in zip(*layers, strict=True)])
    counts = [len(own["image_grid_thw"]) if own else 0 for own in groups.media]
    return tuple(
        torch.cat([next(each) for _ in range(count)], dim=1) if count else torch.empty(0)
        for count in counts
    )


def prepare_prompts(
    model: Any, groups: PromptGroups, autocast: Callable[[], AbstractContextManager[Any]]
) -> PromptGroups:
    """Adds what all passes of a generation batch share: positions, features of a frozen tower.

    Under ZeRO-3 the tower's weights are gathered: every rank has to call this equally often.

    Args:
        model: The policy, unwrapped.
        groups: The prompts.
        autocast: The precision of the policy's passes.
    """
    groups = replace(groups, positions=prompt_positions(backbone_of(model), groups))
    if has_frozen_vision_tower(model):
        with autocast():
            groups = replace(groups, image_features=encode_images(model, groups))
    return groups


def image_kwargs(groups: PromptGroups) -> dict[str, Any]:
    """What ``model(...)`` takes for the images: their features where known, or their pixels."""
    if groups.image_features is None:
        return groups.images()
    shown = [own for own, media in zip(groups.image_features, groups.media, strict=True) if media]
    if not shown:
        return {}
    first, *others = zip(*shown, strict=True)
    encoded = BaseModelOutputWithDeepstackFeatures(pooler_output=first, deepstack_features=others)
    return {"mm_encoder_outputs": {"image": encoded}}
