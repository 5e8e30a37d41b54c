"""A policy of a real model's depth and small widths: as many launches, and little arithmetic."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from trl.trainer.utils import add_fused_lm_head

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

    def put_into(self, config: Any) -> None:
        """Sets the layers of a model's configuration."""
        text, vision = config.text_config, config.vision_config
        text.num_hidden_layers, vision.depth = self.num_layers, self.num_blocks
        text.layer_types = ["full_attention"] * self.num_layers
        if self.full_blocks:
            vision.fullatt_block_indexes = list(self.full_blocks)


DEPTHS = {
    "qwen2_5_vl": Depth(36, 32, (7, 15, 23, 31)),  # 3B
    "qwen2_vl": Depth(28, 32),  # 2B
    "qwen3_vl": Depth(36, 27),  # 4B and 8B
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
    config = tiny_config(train_tokenizer(["Click on the button. (12, 345)"]), family)
    depth.put_into(config)
    return config


def build_policy(config: Any, device: torch.device, dtype: torch.dtype, *, is_ours: bool) -> Any:
    """The same of any configuration, on any device."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(
            config, attn_implementation="sdpa", dtype=dtype
        )
    if is_ours:
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
    vision = config.vision_config
    num_tokens = grid[0] * grid[1] // vision.spatial_merge_size**2
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    ids, media = [], []
    for number in range(num_groups):
        words = torch.randint(20, 60, (40 + number,), generator=numbers)
        start, end = (
            torch.tensor([getattr(config, f"vision_{name}_token_id")]) for name in ("start", "end")
        )
        image = torch.full((num_tokens,), config.image_token_id)
        ids.append(torch.cat([words[:8], start, image, end, words[8:]]))
        pixels = torch.randn(grid[0] * grid[1], width, generator=numbers).to(model.dtype)
        own = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, *grid]])}
        media.append({name: one.to(model.device) for name, one in own.items()})
    ids = [one.to(model.device) for one in ids]
    types = [(one == config.image_token_id).long() for one in ids]
    return PromptGroups(ids, types, media, [num_generations] * num_groups)
