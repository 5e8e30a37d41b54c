"""A collator of one's own: what it hands over is taken, what can be worked out is added.

Four things are its own: ``pixel_values``, ``prompt``, ``solution`` and ``scales``. The sample tells
its key and further fields, the images tell sizes and grids, the processor makes token ids. What is
neither there nor to be had is one error, at the first batch, that lists all of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.frames import frame_size
from grpo_stream.grounding.prompts import messages
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.collate import Batch, PromptCollator, one_or_list
from grpo_stream.train.batches.given_images import (
    form_of,
    given_images,
    is_patches,
    runs_of,
    sizes_of_images,
    with_pixels,
)
from grpo_stream.train.models.patches import cut_floats

OWN = ("pixel_values", "prompt", "solution", "scales")
"""What a collator hands over in any case."""
_ENCODED = ("image_grid_thw", "prompt_ids", "mm_token_type_ids")
_IMAGES = "uint8 of shape (height, width, 3), or floats as the model takes them, (3, height, width)"


class CompletedCollator:
    """Batches of a collator of one's own, completed; in the order of their samples.

    ``pixel_values`` may be, per prompt or stacked, uint8 of shape (height, width, 3), or floats of
    shape (3, height, width) as the model takes them, normalised; or float patches with or without
    ``image_grid_thw``. ``prompt`` is an instruction, or a conversation, in which the image's place
    may be left out. ``solution`` is a box or point in frame ``original``, ``scales`` the original
    size (width, height). A sample that has not exactly one image has a list of them in
    ``pixel_values`` and of their sizes in ``scales``.

    Args:
        collate: From samples to a mapping of columns, or to one mapping per sample.
        own: What would collate else: its template, processor and frame are used.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any], own: PromptCollator) -> None:
        self._collate = collate
        self._own = own

    def __call__(self, samples: Sequence[StreamSample]) -> Batch:
        """See the class.

        Raises:
            ConfigError: naming all that is missing or of another form.
        """
        given = self._collate(samples)
        batch = _columns(given)
        if batch is None:
            expected = f"must return a mapping of columns: {', '.join(OWN)}"
            raise ConfigError("data_collator", type(given).__name__, expected)
        faults = [f"{name} is missing" for name in OWN if batch.get(name) is None]
        faults += _wrong_lengths(batch, len(samples))
        faults = faults or _wrong_counts(batch["pixel_values"], samples)
        if not faults:
            batch["scales"] = [_numbers(one) for one in batch["scales"]]
            batch["solution"] = [_numbers(one) for one in batch["solution"]]
            pairs = zip(batch["scales"], samples, strict=True)
            faults += [
                f"scales must be (width, height) of {_each_image(len(sample.images))}, not {one!r}"
                for one, sample in pairs
                if not _are_sizes(one, len(sample.images))
            ][:1]
        is_encoded = "media" in batch or all(name in batch for name in _ENCODED)
        if not faults and not is_encoded:
            faults += self._encode(batch, samples)
        if faults:
            found = ", ".join(sorted(map(str, batch))) or "nothing"
            raise ConfigError("data_collator", found, f"cannot be trained on: {'; '.join(faults)}")
        return self._with_the_rest(batch, samples)

    def _with_the_rest(self, batch: Batch, samples: Sequence[StreamSample]) -> Batch:
        counts = [len(sample.images) for sample in samples]
        sizes: list[Any] = [one_or_list(sample.model_sizes) for sample in samples]
        if self._own.rule is not None and "image_grid_thw" in batch:
            grids = batch["image_grid_thw"].split(counts)
            sizes = [one_or_list(_size_of(grid, self._own) for grid in own) for own in grids]
        rest = {
            "patch_rule": None,
            "model_size": sizes,
            "num_images": counts,
            **({} if all(counts) else {"spare_media": self._own.spare_media}),
            "answer_frame": [self._own.answer_frame] * len(samples),
            "key": [sample.key for sample in samples],
            "extra": [sample.extra for sample in samples],
        }
        batch["scales"] = [
            tuple(one) if count == 1 else [tuple(_numbers(size)) for size in one]
            for one, count in zip(batch["scales"], counts, strict=True)
        ]
        return rest | batch

    # ---------------------------------------------------------------- images and token ids

    def _encode(self, batch: Batch, samples: Sequence[StreamSample]) -> list[str]:
        """Adds images, grids and ids to the batch; what is wrong, in words."""
        counts = [len(sample.images) for sample in samples]
        images = given_images(batch["pixel_values"])
        if images is None and not is_patches(batch["pixel_values"]):
            return [f"pixel_values must be {_IMAGES}, not {form_of(batch['pixel_values'])}"]
        if self._own.rule is None:
            return self._encode_elsewhere(batch, samples, images)
        if images is None:
            patches, faults = self._given_patches(batch, samples)
        else:
            patches, faults = {}, self._wrong_sizes(images)
        if faults:
            return faults
        if images and images[0].dtype != torch.uint8:
            by = self._own.image_processor
            values, grids = cut_floats(images, by.patch_size, by.merge_size, by.temporal_patch_size)
            patches = {"pixel_values": values, "image_grid_thw": grids}
        sizes = sizes_of_images(images)
        if sizes is None:
            sizes = [_size_of(grid, self._own) for grid in patches["image_grid_thw"]]
        prompts = self._prompts(batch["prompt"], runs_of(sizes, counts), batch["scales"])
        if patches:
            encoded = self._own.ids_of(prompts, patches["image_grid_thw"], counts) | patches
        else:
            encoded = self._own.encoded(with_pixels(samples, images or []), prompts)
        batch |= encoded | {"prompt": prompts}
        return []

    def _encode_elsewhere(
        self, batch: Batch, samples: Sequence[StreamSample], images: list[torch.Tensor] | None
    ) -> list[str]:
        """For a family without Qwen-VL's patches: the processor makes ids, and images of uint8."""
        if images is None:
            return [f"pixel_values must be {_IMAGES}, not {form_of(batch['pixel_values'])}"]
        is_bytes = not images or images[0].dtype == torch.uint8
        own = with_pixels(samples, images) if is_bytes else samples
        sizes = [sample.model_sizes for sample in own]
        prompts = self._prompts(batch["prompt"], sizes, batch["scales"])
        encoded = self._own.encoded(own, prompts)
        if not is_bytes:
            counts = [len(sample.images) for sample in samples]
            for given, media in zip(runs_of(images, counts), encoded["media"], strict=True):
                if not given:
                    continue
                wanted, found = media["pixel_values"], [tuple(image.shape) for image in given]
                if set(found) != {tuple(wanted.shape[1:])} or len(found) != len(wanted):
                    shapes = f"{tuple(wanted.shape[1:])}, not {found[0]}"
                    return [f"pixel_values must be floats of shape {shapes}"]
                media["pixel_values"] = torch.stack(list(given))
        batch |= encoded | {"prompt": prompts}
        return []

    def _given_patches(
        self, batch: Batch, samples: Sequence[StreamSample]
    ) -> tuple[Batch, list[str]]:
        """Float patches with their grids: those given, else those of the samples' sizes."""
        values, processor = batch["pixel_values"], self._own.image_processor
        patches = values if isinstance(values, torch.Tensor) else torch.cat(list(values))
        grids = batch.get("image_grid_thw")
        if grids is None:
            side = processor.patch_size
            sizes = [size for sample in samples for size in sample.model_sizes]
            rows = [(1, size.height // side, size.width // side) for size in sizes]
            grids = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
        if int(grids.prod(dim=-1).sum()) != len(patches):
            words = f"image_grid_thw is missing, and {len(patches)} patches are not those of "
            return {}, [words + f"the samples' sizes, {int(grids.prod(dim=-1).sum())}"]
        return {"pixel_values": patches, "image_grid_thw": grids}, []

    def _wrong_sizes(self, images: Sequence[torch.Tensor]) -> list[str]:
        processor = self._own.image_processor
        multiple = processor.patch_size * processor.merge_size
        for size in sizes_of_images(images) or ():
            if size.width % multiple or size.height % multiple or not size.width * size.height:
                words = "pixel_values must have sides that are multiples of "
                return [f"{words}{multiple} (resize_rule), not {size.width}x{size.height}"]
        return []

    def _prompts(
        self, given: Sequence[Any], sizes: Sequence[Sequence[Size]], scales: Sequence[Any]
    ) -> list[list[dict[str, Any]]]:
        """Conversations, each with the places of its images."""
        template, frame = self._own.template, self._own.answer_frame
        prompts = []
        for prompt, own, listed in zip(given, sizes, scales, strict=True):
            if isinstance(prompt, str):
                originals = [listed] if len(own) == 1 else listed
                shown = [
                    frame_size(frame, model_size=size, original_size=Size(*map(int, original)))
                    for size, original in zip(own, originals, strict=True)
                ]
                prompts.append(messages(template, prompt, *shown))
            else:
                prompts.append(_with_images(prompt, len(own)))
        return prompts


def _columns(given: Any) -> Batch | None:
    """A batch by columns, from a mapping or from one mapping per sample."""
    if isinstance(given, Mapping):
        return dict(given)
    is_rows = isinstance(given, Sequence) and all(isinstance(row, Mapping) for row in given)
    if not is_rows or not given:
        return None
    names = [name for name in given[0] if all(name in row for row in given)]
    return {name: [row[name] for row in given] for name in names}


def _wrong_lengths(batch: Batch, num_samples: int) -> list[str]:
    faults = []
    for name in OWN:
        value = batch.get(name)
        if value is None or (name == "pixel_values" and is_patches(value)):
            continue
        if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != num_samples:
            length = len(value) if hasattr(value, "__len__") else "no"
            faults.append(f"{name} has {length} entries for {num_samples} samples")
    return faults


def _wrong_counts(values: Any, samples: Sequence[StreamSample]) -> list[str]:
    """None may be lost: a sample's images are all there."""
    if is_patches(values):
        return []
    for value, sample in zip(values, samples, strict=True):
        found = len(value) if isinstance(value, list | tuple) else 1
        if found != len(sample.images):
            expected = f"pixel_values must have {_each_image(len(sample.images))} of sample "
            return [f"{expected}{sample.key!r}, not {found}"]
    return []


def _each_image(count: int) -> str:
    return "the original image" if count == 1 else f"a list of {count} images"


def _are_sizes(value: Any, count: int) -> bool:
    """(width, height), or where there is not exactly one image a list of them."""
    if not isinstance(value, list):
        return False
    each = [value] if count == 1 else value
    return len(each) == count and all(len(_numbers(one)) == len(("w", "h")) for one in each)


def _size_of(grid: torch.Tensor, own: PromptCollator) -> Size:
    """Of an image of patches."""
    _, height, width = grid.tolist()
    side = own.image_processor.patch_size
    return Size(width * side, height * side)


def _with_images(
    conversation: Sequence[Mapping[str, Any]], num_images: int
) -> list[dict[str, Any]]:
    """Messages of blocks; the images come first where no message says where."""
    turns = []
    for message in conversation:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        bare = [{"type": "image"} if one.get("type") == "image" else one for one in blocks]
        turns.append({**message, "content": bare})
    if not any(block.get("type") == "image" for turn in turns for block in turn["content"]):
        user = next((turn for turn in turns if turn["role"] == "user"), turns[-1])
        user["content"] = [*[{"type": "image"}] * num_images, *user["content"]]
    return turns


def _numbers(value: Any) -> Any:
    """Numbers of a tensor, an array or a sequence, as a list."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    return value if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
