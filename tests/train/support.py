"""Prompts, images and a collator for the training tests."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.boxes import Size
from grpo_stream.grounding.prompts import TEMPLATES
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.models.processor import known_rule
from grpo_stream.train.prefix.attention import use_shared_prefix_attention
from launch.make_shapes import COLOURS, SHAPES, make_shape
from tests.shards.support import write_set

CPU = torch.device("cpu")

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}
"""Settings of a short training in float32 that leaves nothing behind."""

TASK_TEXTS = [
    *(f"Click on the {colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"({x}, {y})" for x in range(112) for y in (x, 111 - x)),
    "The image is 112x112 pixels. Answer with the position alone, as",
]


class Shapes(NamedTuple):
    """A small set in both forms."""

    shards: Path
    images: Path
    records: list[dict[str, Any]]


def write_shapes(folder, num_images, per_shard=4):
    """Writes generated shapes as shards (keys ``000000``...) and as PNG files with records."""
    images, shards = folder / "images", folder / "shards"
    images.mkdir()
    records, samples = [], []
    for number in range(num_images):
        image, record = make_shape(0, number)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        name = f"{number:06d}"
        (images / f"{name}.png").write_bytes(buffer.getvalue())
        records.append({"image": f"{name}.png", **record})
        extra = {"shape": record["shape"], "colour": record["colour"]}
        size = Size(*image.size)
        meta = make_meta(record["prompt"], tuple(record["solution"]), size, size, extra)
        samples.append(Sample(name, buffer.getvalue(), "png", meta))
    write_set(shards, samples, per_shard)
    return Shapes(shards, images, records)


MIXED_SIZES = (((112, 84),), (), ((56, 56), (84, 140)), ((84, 84), (56, 112), (112, 56)))
"""Images of samples in turn: one, none, two, three."""


def make_mixed_sample(key, sizes, number=0, prompt=None, **extra):
    """A sample at rest of any number of images; its place is in the last one."""
    rng = np.random.default_rng(number)
    images = []
    for width, height in sizes:
        buffer = io.BytesIO()
        noise = rng.integers(0, 256, (-(-height // 14), -(-width // 14), 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
        images.append(("png", buffer.getvalue()))
    first = Size(*sizes[0]) if sizes else None
    more = [Size(*size) for size in sizes[1:]]
    solution = (2, 4, *sizes[-1]) if sizes else ()
    prompt = prompt or f"Click on the red circle{' please' * (number % 3)}"
    pairs = [(size, size) for size in more]
    meta = make_meta(prompt, solution, first, first, extra, pairs, [len(more)] if more else ())
    if not images:
        return Sample(key, b"", "", meta)
    return Sample(key, images[0][1], "png", meta, tuple(images[1:]))


def write_mixed_set(folder, num_samples, per_shard=4):
    """Samples of one, no, two and three images in turn, as shards."""
    samples = [
        make_mixed_sample(f"{number:06d}", MIXED_SIZES[number % len(MIXED_SIZES)], number)
        for number in range(num_samples)
    ]
    write_set(folder, samples, per_shard)
    return folder


def make_mixed_stream(processor, order=(0, 1, 2, 3)):
    """Samples in motion that have images of :data:`MIXED_SIZES`, by their numbers."""
    rule = known_rule(processor.image_processor)
    stored = [make_mixed_sample(f"{number:06d}", MIXED_SIZES[number], number) for number in order]
    return [StreamSample.from_sample(one, rule) for one in stored]


def make_mixed_groups(processor, order=(0, 1, 2), num_generations=2, num_ranks=1):
    """Groups whose prompts have images of :data:`MIXED_SIZES`, by their numbers."""
    batch = make_collator(processor)(make_mixed_stream(processor, order))
    return PromptGroups.from_batch(batch, num_generations, CPU, num_ranks=num_ranks)


def load_model(folder, *, is_prepared=True):
    """The tiny policy in float32; prepared as the trainer does it, with trl's fused head."""
    model = load_policy(folder, dtype=torch.float32, attn_implementation="sdpa")
    if not is_prepared:
        return model
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    use_shared_prefix_attention(model)
    return model.eval()


def make_stream_sample(number=0, size=(56, 56), solution=(10, 20, 30, 40), **changes):
    """A sample whose pixels depend on ``number``; its original is twice as large."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    fields = {
        "key": f"{number:06d}",
        "pixels": pixels,
        "prompt": f"Click on the red circle{' please' * number}",
        "solution": solution,
        "scales": Size(size[0] * 2, size[1] * 2),
        "extra": {},
    }
    return StreamSample(**(fields | changes))


def make_collator(processor, template="point", answer_frame="model", **changes):
    return PromptCollator(processor, TEMPLATES[template], answer_frame, **changes)


def make_groups(processor, sizes=((56, 56),), num_generations=2):
    """Groups of prompts of different lengths over images of ``sizes`` (width, height)."""
    samples = [make_stream_sample(number, size) for number, size in enumerate(sizes)]
    return PromptGroups.from_batch(make_collator(processor)(samples), num_generations, CPU)
