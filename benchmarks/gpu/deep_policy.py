"""A policy of a real model's depth and small widths: as many launches, and little arithmetic."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.families import FAMILIES
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.tiny import tiny_config, train_tokenizer
from grpo_stream.train.models.vision_attention import batch_windows
from grpo_stream.train.prefix.attention import use_shared_prefix_attention


@dataclass(frozen=True)
class Depth:
    """Layers of a model."""

    num_layers: int
    """Of the text model."""
    num_blocks: int
    """Of the vision tower."""
    full_blocks: tuple[int, ...] = ()
    """Blocks that attend over the whole image, where the others attend in windows."""
    kinds: tuple[str, ...] = ("full_attention",)
    """``layer_types`` of the text model's layers, in turn."""

    def put_into(self, config: Any) -> None:
        """Sets the layers of a model's configuration."""
        text, vision = config.text_config, config.vision_config
        text.num_hidden_layers = self.num_layers
        setattr(
            vision, "depth" if hasattr(vision, "depth") else "num_hidden_layers", self.num_blocks
        )
        text.layer_types = [self.kinds[n % len(self.kinds)] for n in range(self.num_layers)]
        if self.full_blocks:
            vision.fullatt_block_indexes = list(self.full_blocks)


DEPTHS = {
    "qwen2_5_vl": Depth(36, 32, (7, 15, 23, 31)),  # 3B
    "qwen2_vl": Depth(28, 32),  # 2B
    "qwen3_vl": Depth(36, 27),  # 4B and 8B
    "qwen3_5": Depth(32, 27, kinds=(*["linear_attention"] * 3, "full_attention")),  # 4B and 9B
    "gemma3": Depth(34, 27, kinds=(*["sliding_attention"] * 5, "full_attention")),  # 4B
}
"""By ``config.model_type``."""


def make_deep_policy(
    family: str, depth: Depth, *, is_ours: bool, dtype: torch.dtype = torch.float32
) -> Any:
    """A policy with random weights, the same for the same arguments, with trl's fused head.

    Args:
        family: One of :data:`DEPTHS`.
        depth: Its layers.
        is_ours: Whether it attends as this project has it, and not as transformers loads it.
        dtype: Of the weights.
    """
    config = deep_config(family, depth)
    return build_policy(config, torch.device("cpu"), dtype, is_ours=is_ours)


def deep_config(family: str, depth: Depth) -> Any:
    """Small widths, so many layers."""
    config = tiny_config(train_tokenizer(["Click on the button. (12, 345)"], family=family), family)
    depth.put_into(config)
    return config


def build_policy(config: Any, device: torch.device, dtype: torch.dtype, *, is_ours: bool) -> Any:
    """The same of any configuration, on any device."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(
            config, attn_implementation="sdpa", dtype=dtype
        )
    if is_ours and FAMILIES[config.model_type].is_packed:
        batch_windows(model)
        use_shared_prefix_attention(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def make_groups(
    model: Any, num_groups: int, num_generations: int, grid: tuple[int, int]
) -> PromptGroups:
    """Prompts of one image each, of random pixels.

    Args:
        model: Of :func:`make_deep_policy`.
        num_groups: How many.
        num_generations: Completions of each.
        grid: Patches of an image, rows and columns; (52, 92) is 1288 x 728 in Qwen2.5-VL.
    """
    config, numbers = model.config, torch.Generator().manual_seed(0)
    make_image = _image_of_one_size if config.model_type == "gemma3" else _image_of_patches
    ids, media = [], []
    for number in range(num_groups):
        words = torch.randint(20, 60, (40 + number,), generator=numbers)
        tokens, own = make_image(config, grid, numbers)
        ids.append(torch.cat([words[:8], tokens, words[8:]]).to(model.device))
        own["pixel_values"] = own["pixel_values"].to(model.dtype)
        media.append({name: one.to(model.device) for name, one in own.items()})
    types = [(one == config.image_token_id).long() for one in ids]
    name = "token_type_ids" if config.model_type == "gemma3" else "mm_token_type_ids"
    return PromptGroups(ids, types, media, [num_generations] * num_groups, types_name=name)


_Image = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Tokens in a prompt, and tensors of a processor."""


def _image_of_patches(config: Any, grid: tuple[int, int], numbers: torch.Generator) -> _Image:
    """As Qwen-VL's processors make it."""
    vision = config.vision_config
    num_tokens = grid[0] * grid[1] // vision.spatial_merge_size**2
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    image = [config.image_token_id] * num_tokens
    tokens = torch.tensor([config.vision_start_token_id, *image, config.vision_end_token_id])
    pixels = torch.randn(grid[0] * grid[1], width, generator=numbers)
    return tokens, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, *grid]])}


def _image_of_one_size(config: Any, grid: tuple[int, int], numbers: torch.Generator) -> _Image:
    """As Gemma 3's processor makes it: any image is one of these; words for its rows of patches."""
    side = config.vision_config.image_size
    image = [config.image_token_id] * config.mm_tokens_per_image
    tokens = [config.boi_token_index, *image, config.eoi_token_index, *[20] * grid[0]]
    return torch.tensor(tokens), {"pixel_values": torch.randn(1, 3, side, side, generator=numbers)}
