"""The vision tower in few calls: windows of one length together, patches cut by a product.

transformers (5.23) gives each window and each image a call of its own wherever flash attention is
not asked for: 2,356 calls a pass for an image of 1288 x 728 in Qwen2.5-VL's tower, 88 here.
"""

import importlib.util
import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.base_model import base_model

WINDOWS = "flash_windows"
"""Name of the attention. With "flash" in its name transformers (5.23,
``is_flash_attention_requested``) hands it all windows at once, with their bounds."""


_FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
    "flash_attention_4": ("flash_attn", "kernels"),
}
"""What each needs one of, by transformers' name."""


@dataclass(frozen=True)
class _Windows:
    """How the tokens of some windows are put in order of the windows' lengths."""

    shapes: list[tuple[int, int]]
    """Number of windows and their length, for each length."""
    order: torch.Tensor | None
    """int64, shape (tokens,): which token comes where; None where they are in order."""
    back: torch.Tensor | None
    """The way back."""


class _Gather(torch.autograd.Function):
    """A permutation of the second axis. Backward is one, too, and no sum over repeated places."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, order: torch.Tensor, back: torch.Tensor) -> Any:
        """Shape (H, tokens, D), and the places of its tokens, there and back."""
        ctx.save_for_backward(order, back)
        return states.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The gradient of the states."""
        order, back = ctx.saved_tensors
        return _Gather.apply(gradients[0], back, order), None, None


class LinearPatches(torch.nn.Conv3d):
    """A convolution whose kernel covers a patch, and nothing of another: one matrix product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Shape (patches, channels, frames, height, width) -> (patches, width of the tower, 1...).

        Overrides ``torch.nn.Conv3d.forward``, which takes 10 to 20 times as long in bfloat16 where
        cuDNN has no kernel for it (pytorch#166122, transformers#45750). Weights stay as they are.
        """
        if input.shape[2:] != self.kernel_size:
            return super().forward(input)
        products = linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return products[..., None, None, None]


def batch_windows(model: Any, wanted: str = "auto") -> str | None:
    """Makes the vision tower attend to windows of one length in one call, and cut patches so.

    Args:
        model: An image-and-text model, or LoRA around it.
        wanted: The setting ``vision_attn_implementation``.

    Returns:
        What the tower attends by, where that was changed.

    Raises:
        ConfigError: transformers refuses an attention of that name.
    """
    base = base_model(model)
    tower = base.get_encoder("image")
    if tower in (base, base.base_model):
        return None
    _cut_patches_by_product(tower)
    if wanted != "auto":
        try:
            base.set_attn_implementation({"vision_config": wanted})
        except (ImportError, ValueError) as error:
            expected = f"cannot be used: {error}; use auto"
            raise ConfigError("vision_attn_implementation", wanted, expected) from error
        return wanted
    # Flash attention that someone has asked for takes all windows at once already.
    if tower.config._attn_implementation != "sdpa" or not _has_windows(tower):  # noqa: SLF001
        return None
    AttentionInterface.register(WINDOWS, window_attention)
    tower.config._attn_implementation = WINDOWS  # noqa: SLF001
    return WINDOWS


def check_vision_attention(wanted: str) -> None:
    """Checks the setting ``vision_attn_implementation`` before any model is loaded.

    Kernels of the hub (``owner/name``) are transformers' to find.

    Raises:
        ConfigError: transformers (5.23) has no attention of that name, or its package is missing.
    """
    known = sorted({"auto", "eager", "sdpa", "flex_attention", *_FLASH_PACKAGES})
    field = "vision_attn_implementation"
    if wanted not in known and "/" not in wanted:
        raise ConfigError(field, wanted, f"must be one of {', '.join(known)}")
    packages = _FLASH_PACKAGES.get(wanted, ())
    if packages and not any(importlib.util.find_spec(one) for one in packages):
        expected = f"needs the package {packages[0]} (or kernels, for one of the hub); use auto"
        raise ConfigError(field, wanted, expected)


def window_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the signature of transformers' ``AttentionInterface``.

    Args:
        module: The block's attention.
        query: Shape (1, H, tokens, D).
        key: The same shape.
        value: The same shape.
        attention_mask: None, where there are windows.
        scaling: Of the products.
        dropout: Of the weights.
        cu_seq_lens_q: int32, shape (windows + 1,): where each begins, and the end of the last.
        **kwargs: Passed on where there are no windows.

    Returns:
        Shape (1, tokens, H, D), and no weights.
    """
    if cu_seq_lens_q is None:
        kwargs |= {"scaling": scaling, "dropout": dropout}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0], None
    windows = _windows_of(cu_seq_lens_q)
    states = [one[0] for one in (query, key, value)]  # (H, tokens, D) each
    if windows.order is not None:
        states = [_Gather.apply(one, windows.order, windows.back) for one in states]
    outputs, start = [], 0
    for number, length in windows.shapes:
        stop = start + number * length
        q, k, v = (one[:, start:stop].unflatten(1, (number, length)) for one in states)
        output = scaled_dot_product_attention(
            q.transpose(0, 1),
            k.transpose(0, 1),
            v.transpose(0, 1),
            dropout_p=dropout,
            scale=scaling,
        )
        outputs.append(output.transpose(0, 1).flatten(1, 2))
        start = stop
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    if windows.order is not None:
        joined = _Gather.apply(joined, windows.back, windows.order)
    return joined.transpose(0, 1)[None].contiguous(), None


_known: Any = WeakIdKeyDictionary()
"""Windows by their bounds: all blocks of a pass, and those computed again in backward, have the
same tensor of bounds, whose lengths the host then asks for once."""


def _windows_of(bounds: torch.Tensor) -> _Windows:
    found: _Windows | None = _known.get(bounds)
    if found is None:
        found = _known[bounds] = _sort_windows(bounds.diff().tolist(), bounds.device)
    return found


def _sort_windows(lengths: list[int], device: torch.device) -> _Windows:
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    numbers = Counter(lengths)
    shapes = [(numbers[length], length) for length in sorted(numbers)]
    if by_length == list(range(len(lengths))):
        return _Windows(shapes, None, None)
    places = torch.arange(sum(lengths)).split(lengths)
    order = torch.cat([places[number] for number in by_length])
    return _Windows(shapes, order.to(device), order.argsort().to(device))


def _has_windows(tower: torch.nn.Module) -> bool:
    """Whether its attention takes bounds of windows or of images."""
    return any(
        "cu_seqlens" in inspect.signature(type(one).forward).parameters
        and hasattr(one, "num_key_value_groups")
        for one in tower.modules()
    )


def _cut_patches_by_product(tower: torch.nn.Module) -> None:
    for module in tower.modules():
        if type(module) is torch.nn.Conv3d and (
            module.stride == module.kernel_size
            and set(module.padding) <= {0}
            and set(module.dilation) == {1}
            and module.groups == 1
        ):
            # Weights, hooks and names stay; so does what deepcopy and state_dict make of it.
            module.__class__ = LinearPatches
