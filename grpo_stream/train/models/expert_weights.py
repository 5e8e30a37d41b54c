"""Weights that are otherwise in the files of the hub: experts turned, towers by longer names.

transformers (5.23) turns them where their shape is not the model's; but under ZeRO-3 a weight's
shape is that of nothing, and files that have the right one already (those that transformers has
written itself) would be turned, too.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import Transpose, WeightConverter

_MODEL_TYPES = ("qwen3_vl_moe",)
_TURNED = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
_SIGLIP_TOWERS = {"gemma3": "vision_tower."}
_SIGLIP = "vision_model."  # behind the tower's name; transformers has no such module any more


class TransposeToFit(Transpose):
    """As ``Transpose(check_dims=True)`` (transformers 5.23), by the weight's whole shape."""

    def __init__(self, dim0: int = 0, dim1: int = 1) -> None:
        super().__init__(dim0, dim1, check_dims=False)

    def convert(
        self, input_dict: Any, source_patterns: Any, target_patterns: Any, **kwargs: Any
    ) -> Any:
        """A weight by its name in the model."""
        weight = kwargs["model"].get_parameter(kwargs["full_layer_name"])
        found = next(iter(input_dict.values()))
        found = found[0] if isinstance(found, list) else found
        if found.shape == getattr(weight, "ds_shape", weight.shape):
            return {self.get_target_pattern(input_dict, source_patterns, target_patterns): found}
        return super().convert(input_dict, source_patterns, target_patterns, **kwargs)

    @property
    def reverse_op(self) -> "TransposeToFit":
        """What saving does: nothing, as upstream."""
        return TransposeToFit(self.dim1, self.dim0)


def use_whole_shapes() -> None:
    """Puts it in the place of upstream's, for the families that have such files."""
    for model_type in _MODEL_TYPES:
        mapping = get_checkpoint_conversion_mapping(model_type) or []
        for entry in mapping:
            if isinstance(entry, WeightConverter):
                entry.operations = [
                    TransposeToFit(one.dim0, one.dim1) if isinstance(one, Transpose) else one
                    for one in entry.operations
                ]
        register_checkpoint_conversion_mapping(model_type, mapping, overwrite=True)


def as_in_files(
    model_type: str, named: Iterator[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights of a model, in the layout of the hub's files and under names that these have.

    Args:
        model_type: Of the model; any.
        named: By their names in the model, or in a file of it; one after another, as they are
            gathered.
    """
    for name, weight in named:
        is_turned = model_type in _MODEL_TYPES and name.endswith(_TURNED)
        yield (
            _name_in_files(model_type, name),
            weight.transpose(1, 2).contiguous() if is_turned else weight,
        )


def _name_in_files(model_type: str, name: str) -> str:
    tower = _SIGLIP_TOWERS.get(model_type)
    if tower is None or tower + _SIGLIP in name:
        return name
    return name.replace(tower, tower + _SIGLIP)
