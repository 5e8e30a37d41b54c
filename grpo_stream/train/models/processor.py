"""Loads a policy's processor, with or without torchvision, and tells the resize rule it follows."""

import importlib.util
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.video_processing_utils import BaseVideoProcessor

from grpo_stream.errors import ConfigError
from grpo_stream.families import QWEN_PROCESSORS
from grpo_stream.images import ResizeRule
from grpo_stream.train.models.model_path import base_model_of, cannot_load, check_model_path

# They cut patches as Qwen-VL's, but count an image's pixels twice, as frames of a video, when they
# choose its size.
_OWN = frozenset(
    name + end
    for name in ("Glm4vImageProcessor", "Glm46VImageProcessor")
    for end in ("", "Pil", "Fast")
)


class ImageTextProcessor(Qwen2_5_VLProcessor):
    """A Qwen-VL processor (transformers 5.23) for images and text, without the video half.

    The video processor needs torchvision; a machine without it (CPU tests, the quickstart) can
    still process images through Pillow.

    Args:
        image_processor: The family's.
        tokenizer: The model's.
        chat_template: The model's.
        stands_for: Name of the family's processor, one of ``QWEN_PROCESSORS``: for one
            image and a text they do the same.
        **kwargs: As the family's processor takes them.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        stands_for: str = Qwen2_5_VLProcessor.__name__,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("video_processor", None)
        self.stands_for = stands_for
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Extends ``ProcessorMixin.to_dict`` (transformers 5.23): saved as the class it stands for.

        ``AutoProcessor`` on a machine with torchvision then finds that class, and the settings of
        its video half, which are those of images.
        """
        saved: dict[str, Any] = super().to_dict()
        video = {k: v for k, v in saved["image_processor"].items() if k != "image_processor_type"}
        named = QWEN_PROCESSORS[self.stands_for].video_processor
        saved["video_processor"] = video | {"video_processor_type": named}
        saved["processor_class"] = saved.pop("stands_for")
        return saved

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Overrides ``ProcessorMixin.get_attributes`` (transformers 5.23): no video processor."""
        return ["image_processor", "tokenizer"]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Overrides ``ProcessorMixin`` (transformers 5.23): the video processor may be missing."""
        if argument_name == "video_processor":
            return type(None)
        return super().check_argument_for_proper_class(argument_name, argument)


@cache
def without_video(kind: Any) -> Any:
    """A processor's class (transformers 5.23) without its video half, which needs torchvision.

    Args:
        kind: The class, which is given back where it has none, or cannot do without. Images and
            texts are processed by its own methods, and it is saved under its own name, with the
            attribute ``video_settings``, if it has one, for machines with torchvision.
    """
    video = inspect.signature(kind.__init__).parameters.get("video_processor")
    if video is None or video.default is not None:
        return kind

    class ImagesOnly(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != "video_processor"]

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

        def to_dict(self) -> dict[str, Any]:
            settings = getattr(self, "video_settings", None)
            saved: dict[str, Any] = super().to_dict()
            return saved if settings is None else saved | {"video_processor": settings}

    ImagesOnly.__name__ = kind.__name__
    return ImagesOnly


def load_processor(
    model_id: str | Path,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    revision: str = "main",
) -> Any:
    """The processor of a model, padding on the left as generation needs it.

    Args:
        model_id: Folder or hub id; for the folder of a LoRA adapter without a processor its base
            model's is given.
        min_pixels: Smallest image area in pixels after resizing; None keeps the model's own.
        max_pixels: Largest image area in pixels after resizing; None keeps the model's own.
        revision: Branch, tag or commit of a hub id; a folder has none.

    Returns:
        The model's ordinary processor where torchvision is installed, and for families without
        Qwen-VL's patches; otherwise an :class:`ImageTextProcessor`, which gives the same tensors
        for images and text.

    Raises:
        ConfigError: there is no such folder or hub id, or it holds no processor.
    """
    check_model_path(model_id)
    if (base := base_model_of(model_id)) and not [*Path(model_id).glob("*processor*.json")]:
        model_id = base
    try:
        processor = _loaded(model_id, revision)
    except (OSError, ValueError) as error:
        raise cannot_load(model_id, "holds no processor", error) from error
    if known_rule(processor.image_processor) is None:
        for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
            if value is not None:
                expected = f"is not for {type(processor).__name__}, which has sizes of its own"
                raise ConfigError(name, value, f"{expected}; leave it out")
        return processor
    size = dict(processor.image_processor.size)
    if min_pixels is not None:
        size["shortest_edge"] = min_pixels
    if max_pixels is not None:
        size["longest_edge"] = max_pixels
    processor.image_processor.size = type(processor.image_processor.size)(**size)
    return processor


def _loaded(model_id: str | Path, revision: str) -> Any:
    settings, _ = ImageTextProcessor.get_processor_dict(model_id, revision=revision)
    stands_for = settings.get("processor_class", Qwen2_5_VLProcessor.__name__)
    if importlib.util.find_spec("torchvision") is not None or not hasattr(transformers, stands_for):
        return AutoProcessor.from_pretrained(model_id, padding_side="left", revision=revision)
    if stands_for not in QWEN_PROCESSORS:
        kind = without_video(getattr(transformers, stands_for))
        processor = kind.from_pretrained(model_id, padding_side="left", revision=revision)
        if kind is not getattr(transformers, stands_for):
            processor.video_settings = _video_settings(model_id, revision)
        return processor
    tokenizer = AutoTokenizer.from_pretrained(model_id, padding_side="left", revision=revision)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(model_id, revision=revision)
    # The template may be in chat_template.json, which only a processor reads.
    template = settings.get("chat_template") or tokenizer.chat_template
    return ImageTextProcessor(
        image_processor, tokenizer, chat_template=template, stands_for=stands_for
    )


def _video_settings(model_id: str | Path, revision: str) -> dict[str, Any] | None:
    try:
        settings, _ = BaseVideoProcessor.get_video_processor_dict(model_id, revision=revision)
    except OSError:  # there is no such file
        return None
    # Of an image processor's file, from which older folders take them, the class is not theirs.
    return settings if "video_processor_type" in settings else None


def resize_rule(image_processor: Any) -> ResizeRule:
    """The rule that the stream must resize by, so that the processor finds nothing left to do.

    Raises:
        ConfigError: not an image processor of the Qwen-VL kind.
    """
    try:
        size = image_processor.size
        return ResizeRule(
            multiple=image_processor.patch_size * image_processor.merge_size,
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"],
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            "image_processor",
            type(image_processor).__name__,
            "must have patch_size, merge_size and a size of shortest_edge and longest_edge, "
            "like Qwen2VLImageProcessor",
        ) from error


def known_rule(image_processor: Any) -> ResizeRule | None:
    """:func:`resize_rule`; None for a family without Qwen-VL's patches, which resizes by itself.

    Raises:
        ConfigError: sizes that cannot be.
    """
    is_known = hasattr(image_processor, "merge_size") and type(image_processor).__name__ not in _OWN
    return resize_rule(image_processor) if is_known else None
