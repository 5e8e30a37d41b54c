"""From samples to what a model takes: each prompt is encoded once, whatever is sampled from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from grpo_stream.boxes import Frame
from grpo_stream.errors import RecordError
from grpo_stream.grounding.frames import frame_size
from grpo_stream.grounding.prompts import PromptTemplate, messages
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.record_source import sample_from_record
from grpo_stream.stream.sources import StreamSample
from grpo_stream.train.models.patches import device_rule, image_tensor
from grpo_stream.train.models.processor import known_rule
from grpo_stream.train.models.processor_only import encode_by_processor

Batch = dict[str, Any]
"""One entry per prompt in every list; see :class:`PromptCollator`."""

IGNORED_LABEL = -100


class PromptCollator:
    """Encodes prompts with the model's processor; images stay bytes until they are on the device.

    Args:
        processor: The model's processor; its tokenizer and chat template are used.
        template: The words around an instruction.
        answer_frame: Frame that the model answers in.
        image_processor: Used for images instead of the processor's own. Where it does not do what
            its settings say (``patches.device_rule``), it is run here, and its patches handed on.
        images_root: Folder that the ``image`` of a raw record is relative to.
        chat_template_kwargs: Further variables of the model's chat template.
        max_prompt_tokens: Longest prompt, its image's tokens included.

    Called with stream samples, or with raw records (mappings with ``image``, ``prompt`` and
    ``solution``) whose images are then loaded with Pillow from ``images_root``. Returns a dict:

    * ``pixel_values``: per prompt its image, uint8, shape (height, width, 3), at the model's size,
      in pinned memory where there is CUDA; ``patches.image_inputs`` makes the model's patches of
      them on its device. A collator of your own may give a float tensor instead, shape
      (patches of all images, patch dimension), which the trainer takes as it is;
      In a family without Qwen-VL's patches the image as it came, for people and engines;
    * ``media``: in such a family, per prompt all that its processor has made of its images
      (:func:`~grpo_stream.train.models.processor_only.encode_by_processor`), in the place of the
      next two;
    * ``patch_rule``: how those images are normalised and cut; None beside float patches;
    * ``image_grid_thw``: int64, shape (prompts, 3): patches in time, height and width;
    * ``prompt_ids``: per prompt int64, shape (prompt length,), image tokens expanded;
    * ``mm_token_type_ids``: per prompt int64, the same shape: 0 text, 1 image;
    * ``prompt``: per prompt the conversation, its image as a placeholder;
    * ``solution``: per prompt the numbers of its target (:mod:`grpo_stream.targets`), frame
      ``original``;
    * ``scales``: per prompt (width, height) of the original image in pixels;
    * ``model_size``: per prompt (width, height) of the resized image in pixels;
    * ``answer_frame``: per prompt the frame's name;
    * ``key``: per prompt the sample's key;
    * ``extra``: per prompt the record's own further fields.
    """

    def __init__(
        self,
        processor: Any,
        template: PromptTemplate,
        answer_frame: Frame,
        *,
        image_processor: Any = None,
        images_root: str | Path | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_prompt_tokens: int = StreamConfig.max_prompt_tokens,
    ) -> None:
        self.max_prompt_tokens = max_prompt_tokens
        self.processor = processor
        self.image_processor = image_processor or processor.image_processor
        self.template = template
        self.answer_frame = answer_frame
        self.images_root = images_root
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.rule = known_rule(self.image_processor)
        self.patch_rule = None if self.rule is None else device_rule(self.image_processor)
        tokenizer = processor.tokenizer
        self._image_token = processor.image_token
        self._image_token_id = tokenizer.convert_tokens_to_ids(self._image_token)

    def __call__(self, features: Sequence[StreamSample | Mapping[str, Any]]) -> Batch:
        """See the class."""
        samples = [self._loaded(feature) for feature in features]
        prompts = [self._messages(sample) for sample in samples]
        encoded = self.encoded(samples, prompts)
        for sample, ids in zip(samples, encoded["prompt_ids"], strict=True):
            self._check_length(sample, ids)
        return {
            **encoded,
            "prompt": prompts,
            "solution": [list(sample.solution) for sample in samples],
            "scales": [tuple(sample.scales) for sample in samples],
            "model_size": [tuple(sample.model_size) for sample in samples],
            "answer_frame": [self.answer_frame] * len(samples),
            "key": [sample.key for sample in samples],
            "extra": [sample.extra for sample in samples],
        }

    def prompt_ids(self, sample: StreamSample, grid: torch.Tensor) -> torch.Tensor:
        """``prompt_ids`` of one more prompt about an image of ``grid``, shape (3,)."""
        ids = self._prompt_ids(self._messages(sample), grid)
        self._check_length(sample, ids)
        return ids

    def _check_length(self, sample: StreamSample, ids: torch.Tensor) -> None:
        if len(ids) > self.max_prompt_tokens:
            detail = f"key={sample.key!r}: {len(ids)} tokens are more than max_prompt_tokens="
            raise RecordError("prompt_too_long", f"{detail}{self.max_prompt_tokens}")

    def encoded(self, samples: Sequence[StreamSample], prompts: Sequence[Any]) -> Batch:
        """The columns of a batch that the processor makes: images and token ids.

        Args:
            samples: Whose pixels they are.
            prompts: Per sample a conversation with the place of its image.
        """
        if self.rule is None:
            pixels, texts = [sample.pixels for sample in samples], map(self._text, prompts)
            return encode_by_processor(self.processor, pixels, list(texts))
        images, grids = self._images(samples)
        columns = {"pixel_values": images, "patch_rule": self.patch_rule, "image_grid_thw": grids}
        return columns | self.ids_of(prompts, grids)

    def ids_of(self, prompts: Sequence[Any], grids: torch.Tensor) -> Batch:
        """Token ids and their types, for images of patches.

        Args:
            prompts: Per sample a conversation with the place of its image.
            grids: int64, shape (samples, 3): patches in time, height and width.
        """
        prompt_ids = [
            self._prompt_ids(prompt, grid) for prompt, grid in zip(prompts, grids, strict=True)
        ]
        types = [(ids == self._image_token_id).long() for ids in prompt_ids]
        return {"prompt_ids": prompt_ids, "mm_token_type_ids": types}

    def _loaded(self, feature: StreamSample | Mapping[str, Any]) -> StreamSample:
        if isinstance(feature, StreamSample):
            return feature
        return sample_from_record(feature, self.images_root, self.rule)

    def _images(
        self, samples: Sequence[StreamSample]
    ) -> tuple[list[torch.Tensor] | torch.Tensor, torch.Tensor]:
        """``pixel_values`` and ``image_grid_thw`` of the batch."""
        if self.patch_rule is None:
            images = [Image.fromarray(sample.pixels) for sample in samples]
            encoded = self.image_processor(images=images, return_tensors="pt")
            return encoded["pixel_values"], encoded["image_grid_thw"]
        grids = [self.patch_rule.grid(sample.model_size) for sample in samples]
        return [image_tensor(sample.pixels) for sample in samples], torch.tensor(grids)

    def _messages(self, sample: StreamSample) -> list[dict[str, Any]]:
        size = frame_size(
            self.answer_frame, model_size=sample.model_size, original_size=sample.scales
        )
        return messages(self.template, sample.prompt, size)

    def _text(self, prompt: list[dict[str, Any]]) -> str:
        text: str = self.processor.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
        )
        return text

    def _prompt_ids(self, prompt: list[dict[str, Any]], grid: torch.Tensor) -> torch.Tensor:
        """Token ids with the image placeholder repeated, as Qwen's processor does in text."""
        text = self._text(prompt)
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        num_tokens = int(grid.prod()) // self.image_processor.merge_size**2
        places = [i for i, token in enumerate(ids) if token == self._image_token_id]
        if len(places) != 1:
            raise RecordError(
                "image_token",
                f"the rendered prompt holds {self._image_token} {len(places)} times, once is "
                f"expected: the instruction or the template must not write it: {text!r}",
            )
        place = places[0]
        return torch.tensor([*ids[:place], *[self._image_token_id] * num_tokens, *ids[place + 1 :]])
