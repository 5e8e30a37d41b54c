"""From samples to what a model takes: each prompt is encoded once, whatever is sampled from it."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from grpo_stream.boxes import Frame, Size
from grpo_stream.errors import RecordError
from grpo_stream.grounding.frames import frame_size
from grpo_stream.grounding.prompts import TEMPLATES, PromptTemplate, messages
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.record_source import sample_from_record
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.models.patches import device_rule, image_tensor
from grpo_stream.train.models.processor import known_rule
from grpo_stream.train.models.processor_only import encode_by_processor

Batch = dict[str, Any]
"""One entry per prompt in every list; see :class:`PromptCollator`."""

IGNORED_LABEL = -100

Media = dict[str, Any]
"""What a processor makes of one prompt's images, each under the name that the model has for it."""

_SPARE_SIZE = Size(56, 56)


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
      in pinned memory where there is CUDA, or the list of them where it has not exactly one;
      ``patches.image_inputs`` makes the model's patches of them on its device. A collator of your
      own may give a float tensor instead, shape (patches of all images, patch dimension), which
      the trainer takes as it is;
      In a family without Qwen-VL's patches the image as it came, for people and engines;
    * ``media``: in such a family, per prompt all that its processor has made of its images
      (:func:`~grpo_stream.train.models.processor_only.encode_by_processor`), in the place of the
      next two;
    * ``patch_rule``: how those images are normalised and cut; None beside float patches;
    * ``image_grid_thw``: int64, shape (images of all prompts, 3): patches in time, height and
      width;
    * ``num_images``: per prompt how many it has;
    * ``spare_media``: where a prompt has none, a small image as the model takes it, for ranks that
      have to call the vision tower with something;
    * ``prompt_ids``: per prompt int64, shape (prompt length,), image tokens expanded;
    * ``short_ids``: in a family without Qwen-VL's patches, per prompt int64, shape (length,), the
      same before they are expanded;
    * ``mm_token_type_ids``: per prompt int64, the same shape: 0 text, 1 image;
    * ``prompt``: per prompt the conversation, its images as placeholders;
    * ``solution``: per prompt the numbers of its target (:mod:`grpo_stream.targets`), frame
      ``original``;
    * ``scales``: per prompt (width, height) of the original image in pixels, or the list of them
      where it has not exactly one;
    * ``model_size``: per prompt the same of the resized image;
    * ``answer_frame``: per prompt the frame's name;
    * ``key``: per prompt the sample's key;
    * ``extra``: per prompt the record's own further fields; of several images also
      ``solution_images``.
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
        prompts = [self.conversation(sample) for sample in samples]
        encoded = self.encoded(samples, prompts)
        for sample, ids in zip(samples, encoded["prompt_ids"], strict=True):
            self._check_length(sample, ids)
        return {
            **encoded,
            "prompt": prompts,
            "solution": [list(sample.solution) for sample in samples],
            "scales": [one_or_list(tuple(s) for s in one.original_sizes) for one in samples],
            "model_size": [one_or_list(tuple(s) for s in one.model_sizes) for one in samples],
            "answer_frame": [self.answer_frame] * len(samples),
            "key": [sample.key for sample in samples],
            "extra": [sample.extra for sample in samples],
        }

    def prompt_ids(self, sample: StreamSample, grid: torch.Tensor) -> torch.Tensor:
        """``prompt_ids`` of one more prompt about an image of ``grid``, shape (3,)."""
        ids = self._prompt_ids(self.conversation(sample), grid[None])
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
        counts = [len(sample.images) for sample in samples]
        spare = {} if all(counts) else {"spare_media": self.spare_media}
        if self.rule is None:
            pixels, texts = [sample.images for sample in samples], map(self.text, prompts)
            encoded = encode_by_processor(self.processor, pixels, list(texts))
            return {**encoded, "num_images": counts, **spare}
        images, grids = self._images(samples)
        columns = {"pixel_values": images, "patch_rule": self.patch_rule, "image_grid_thw": grids}
        return {**columns, "num_images": counts, **spare, **self.ids_of(prompts, grids, counts)}

    @cached_property
    def spare_media(self) -> Media:
        """One small image as the model takes it."""
        image = Image.new("RGB", _SPARE_SIZE)
        if self.rule is not None:
            encoded = self.image_processor(images=[image], return_tensors="pt")
            return {name: encoded[name] for name in ("pixel_values", "image_grid_thw")}
        text = self.text(messages(TEMPLATES["plain"], "", _SPARE_SIZE))
        spare: Media = encode_by_processor(self.processor, [[np.asarray(image)]], [text])["media"][
            0
        ]
        return spare

    def ids_of(
        self, prompts: Sequence[Any], grids: torch.Tensor, counts: Sequence[int] | None = None
    ) -> Batch:
        """Token ids and their types, for images of patches.

        Args:
            prompts: Per sample a conversation with the places of its images.
            grids: int64, shape (images of all samples, 3): patches in time, height and width.
            counts: Images of each sample; one each if not given.
        """
        own = grids.split(list(counts or [1] * len(prompts)))
        prompt_ids = [
            self._prompt_ids(prompt, grid) for prompt, grid in zip(prompts, own, strict=True)
        ]
        types = [(ids == self._image_token_id).long() for ids in prompt_ids]
        return {"prompt_ids": prompt_ids, "mm_token_type_ids": types}

    def _loaded(self, feature: StreamSample | Mapping[str, Any]) -> StreamSample:
        if isinstance(feature, StreamSample):
            return feature
        return sample_from_record(feature, self.images_root, self.rule)

    def _images(
        self, samples: Sequence[StreamSample]
    ) -> tuple[list[Any] | torch.Tensor, torch.Tensor]:
        """``pixel_values`` and ``image_grid_thw`` of the batch."""
        if self.patch_rule is None:
            images = [Image.fromarray(pixels) for sample in samples for pixels in sample.images]
            if not images:  # which no processor takes
                spare = self.spare_media
                return spare["pixel_values"][:0], spare["image_grid_thw"][:0]
            encoded = self.image_processor(images=images, return_tensors="pt")
            return encoded["pixel_values"], encoded["image_grid_thw"]
        grids = [self.patch_rule.grid(size) for sample in samples for size in sample.model_sizes]
        tensors = [one_or_list(map(image_tensor, sample.images)) for sample in samples]
        return tensors, torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)

    def conversation(self, sample: StreamSample) -> list[dict[str, Any]]:
        """What is put to the model, with a place for each image."""
        sizes = [
            frame_size(self.answer_frame, model_size=model, original_size=original)
            for model, original in zip(sample.model_sizes, sample.original_sizes, strict=True)
        ]
        return messages(self.template, sample.prompt, *sizes)

    def text(self, prompt: Sequence[dict[str, Any]]) -> str:
        """A conversation by the model's own chat template, up to where it answers."""
        text: str = self.processor.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
        )
        return text

    def _prompt_ids(self, prompt: list[dict[str, Any]], grids: torch.Tensor) -> torch.Tensor:
        """Token ids with the image placeholders repeated, as Qwen's processor does in text."""
        text = self.text(prompt)
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = ids.count(self._image_token_id)
        if found != len(grids):
            expected = "once is" if len(grids) == 1 else f"{len(grids)} times are"
            raise RecordError(
                "image_token",
                f"the rendered prompt holds {self._image_token} {found} times, {expected} "
                f"expected: the instruction or the template must not write it: {text!r}",
            )
        counts = iter((grids.prod(dim=-1) // self.image_processor.merge_size**2).tolist())
        repeated = [next(counts) if token == self._image_token_id else 1 for token in ids]
        return torch.tensor(ids).repeat_interleave(torch.tensor(repeated))


def one_or_list(values: Iterable[Any]) -> Any:
    """What a batch has for each image of a sample: of one image the value, else the list."""
    found = list(values)
    return found[0] if len(found) == 1 else found
