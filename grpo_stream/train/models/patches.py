"""From uint8 images to the float patches that a Qwen-VL model takes, on the model's device.

A pixel has 256 values a channel. So the processor's arithmetic is done on those, once, in the
processor's own order and precision, and each pixel looks its own up: one byte a value travels to
the device instead of eight (four of a float, two time steps), and the floats are the processor's.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError
from grpo_stream.images import Pixels
from grpo_stream.train.models.processor import resize_rule

logger = logging.getLogger(__name__)

_NUM_CHANNELS = 3
_NUM_VALUES = 256  # of a uint8
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class PatchRule:
    """How a Qwen-VL image processor normalises pixels and cuts them into patches.

    Source: ``Qwen2VLImageProcessor`` and ``Qwen2VLImageProcessorPil`` of transformers 5.23, which
    Qwen2-VL, Qwen2.5-VL and Qwen3-VL share.

    Raises:
        ConfigError: a value cannot work.
    """

    patch_size: int = 14
    """Side of a patch in pixels."""
    temporal_patch_size: int = 2
    """Time steps of a patch; an image fills them all with itself."""
    merge_size: int = 2
    """Patches per side that become one visual token; they are together."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    """Of red, green and blue after rescaling."""
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    """Of red, green and blue after rescaling."""
    rescale_factor: float = 1 / 255
    """A pixel is multiplied by it first."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1, for example 2")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != _NUM_CHANNELS:
                raise ConfigError(name, getattr(self, name), "must be three numbers: R, G, B")
        if 0 in self.std:
            raise ConfigError("std", self.std, "divides: must not hold 0; 1 leaves values alone")

    @classmethod
    def of(cls, image_processor: Any) -> "PatchRule":
        """The rule that an image processor states in its attributes.

        Raises:
            ConfigError: it lacks them: not an image processor of the Qwen-VL kind.
        """
        try:
            rescales, normalises = image_processor.do_rescale, image_processor.do_normalize
            return cls(
                patch_size=int(image_processor.patch_size),
                temporal_patch_size=int(image_processor.temporal_patch_size),
                merge_size=int(image_processor.merge_size),
                mean=_per_channel(image_processor.image_mean if normalises else 0.0),
                std=_per_channel(image_processor.image_std if normalises else 1.0),
                rescale_factor=float(image_processor.rescale_factor if rescales else 1.0),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                "image_processor",
                type(image_processor).__name__,
                "must have patch_size, temporal_patch_size, merge_size, image_mean, image_std and "
                "rescale_factor, like Qwen2VLImageProcessor",
            ) from error

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch: channels x time steps x patch_size x patch_size."""
        return _NUM_CHANNELS * self.temporal_patch_size * self.patch_size**2

    def grid(self, size: Size) -> tuple[int, int, int]:
        """Patches of an image in time, height and width.

        Args:
            size: Of the image in pixels; both sides are multiples of patch_size x merge_size.

        Raises:
            ConfigError: they are not.
        """
        multiple = self.patch_size * self.merge_size
        if size.width % multiple or size.height % multiple or not size.width * size.height:
            raise ConfigError(
                "resize",
                f"{size.width}x{size.height}",
                f"images come at the model's size, in multiples of {multiple}; give the stream "
                "resize=resize_rule(image_processor)",
            )
        return 1, size.height // self.patch_size, size.width // self.patch_size

    def table(self) -> NDArray[np.float32]:
        """What each value of each channel becomes: float32, shape (3, 256).

        In the order and precision of the Pillow processor: rescaled in float64, rounded, then
        normalised in float32. The torchvision processor folds both steps into one.
        """
        values = np.arange(_NUM_VALUES, dtype=np.float64) * self.rescale_factor
        mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (self.mean, self.std))
        table: NDArray[np.float32] = (values.astype(np.float32) - mean) / std
        return table


def to_patches(
    images: Sequence[torch.Tensor],
    rule: PatchRule,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalises images and cuts them into patches, on ``device``.

    Args:
        images: uint8, shape (height, width, 3), RGB, at the model's size. From
            pinned memory they are copied to the device without waiting.
        rule: Of the model's image processor.
        device: Where the floats are made and stay.
        dtype: Of the patches.

    Returns:
        ``pixel_values``, shape (patches of all images, ``rule.patch_dim``), and
        ``image_grid_thw``, int64, shape (images, 3), both on ``device``. In float32 they are bit
        for bit those of ``Qwen2VLImageProcessorPil``, and within 1e-6 of the torchvision one.

    Raises:
        ConfigError: an image is not at the model's size.
    """
    grids = [rule.grid(Size(image.shape[1], image.shape[0])) for image in images]
    num_patches = [height * width for _, height, width in grids]
    area = rule.patch_size**2
    table = torch.from_numpy(rule.table()).to(device, dtype).flatten()
    rows = torch.arange(_NUM_CHANNELS, dtype=torch.int32, device=device)[:, None] * _NUM_VALUES
    patches = torch.empty(
        (sum(num_patches), _NUM_CHANNELS, rule.temporal_patch_size, area),
        dtype=dtype,
        device=device,
    )
    for image, (_, height, width), place in zip(
        images, grids, patches.split(num_patches), strict=True
    ):
        # Cut while a value is one byte; then looked up; the time steps are copies.
        cut = _cut(image.to(device, non_blocking=True), rule, height, width)
        floats = table.index_select(0, (cut + rows).flatten())
        place.copy_(floats.view(-1, _NUM_CHANNELS, 1, area).expand_as(place))
    return patches.flatten(1), torch.tensor(grids, device=device, dtype=torch.int64).view(-1, 3)


def cut_floats(
    images: Sequence[torch.Tensor], patch_size: int, merge_size: int, temporal_patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts images into patches that are normalised already.

    Args:
        images: float, shape (3, height, width), at the model's size.
        patch_size: Of the model's image processor.
        merge_size: Of the same.
        temporal_patch_size: Of the same.

    Returns:
        As :func:`to_patches`, on the images' device.
    """
    rule = PatchRule(patch_size, temporal_patch_size, merge_size)
    grids = [rule.grid(Size(image.shape[2], image.shape[1])) for image in images]
    patches = []
    for image, (_, height, width) in zip(images, grids, strict=True):
        cut = _cut(image.permute(1, 2, 0).contiguous(), rule, height, width)[:, :, None]
        patches.append(cut.expand(-1, -1, temporal_patch_size, -1).flatten(1))
    return torch.cat(patches), torch.tensor(grids)


def image_tensor(pixels: Pixels) -> torch.Tensor:
    """A copy of an image as a tensor, in pinned memory where there is CUDA.

    Args:
        pixels: uint8, shape (height, width, 3).
    """
    tensor = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    tensor.numpy()[...] = pixels
    return tensor


def image_inputs(
    batch: Mapping[str, Any], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model takes of a collated batch's images: made once per generation batch.

    Args:
        batch: With ``pixel_values``, either uint8 images (per prompt one, or a list of any number)
            beside the ``patch_rule`` that they are cut by, or float patches that a collator has
            made; and ``image_grid_thw``.
        device: The model's.

    Returns:
        ``pixel_values``, float, shape (patches, patch dimension), and ``image_grid_thw``, int64,
        shape (images, 3), on ``device``.

    Raises:
        ConfigError: there are images, but no rule.
    """
    images = batch["pixel_values"]
    if isinstance(images, torch.Tensor):
        return images.to(device), batch["image_grid_thw"].to(device)
    rule = batch.get("patch_rule")
    if rule is None:
        raise ConfigError(
            "data_collator",
            "images without patch_rule",
            "must give patch_rule=PatchRule.of(image_processor) beside uint8 images, or "
            "float patches as pixel_values",
        )
    return to_patches(flat_images(images), rule, device)


def flat_images(images: Sequence[Any]) -> list[torch.Tensor]:
    """The images of all prompts, one behind the other: per prompt one, or a list of any number."""
    return [one for own in images for one in (own if isinstance(own, list) else [own])]


def device_rule(image_processor: Any) -> PatchRule | None:
    """The rule by which the device can do a processor's work; None where it cannot.

    The processor is run once, on a small image, and checked against its rule: one that differs
    (of another family, or overridden) must keep doing its work itself, which is logged.

    Args:
        image_processor: With a size to resize to; see ``resize_rule``.
    """
    try:
        rule = PatchRule.of(image_processor)
    except ConfigError as error:
        logger.warning("images are normalised on the host, for each batch: %s", error)
        return None
    multiple = rule.patch_size * rule.merge_size
    size = resize_rule(image_processor).target(Size(3 * multiple, 2 * multiple))
    noise = np.random.default_rng(0).integers(
        0, _NUM_VALUES, (size.height, size.width, _NUM_CHANNELS), dtype=np.uint8
    )
    expected = image_processor(images=[Image.fromarray(noise)], return_tensors="pt")
    found = to_patches([torch.from_numpy(noise)], rule)
    for name, tensor in zip(("pixel_values", "image_grid_thw"), found, strict=True):
        own = expected[name]
        if own.shape != tensor.shape or not torch.allclose(
            own.to(tensor.dtype), tensor, rtol=_TOLERANCE, atol=_TOLERANCE
        ):
            logger.warning(
                "images are normalised on the host, for each batch: %s gives other %s than its "
                "settings say",
                type(image_processor).__name__,
                name,
            )
            return None
    return rule


def _cut(image: torch.Tensor, rule: PatchRule, height: int, width: int) -> torch.Tensor:
    """Patches of one image: (height, width, 3) pixels -> (patches, 3, pixels of a patch).

    Patches that are merged into one visual token follow each other: rows of blocks, blocks of a
    row, then the patches of a block.
    """
    patch, merge = rule.patch_size, rule.merge_size
    blocks = image.view(height // merge, merge, patch, width // merge, merge, patch, _NUM_CHANNELS)
    return blocks.permute(0, 3, 1, 4, 6, 2, 5).reshape(height * width, _NUM_CHANNELS, patch**2)


def _per_channel(value: float | Iterable[float]) -> tuple[float, ...]:
    if isinstance(value, Iterable):
        return tuple(float(number) for number in value)
    return (float(value),) * _NUM_CHANNELS
