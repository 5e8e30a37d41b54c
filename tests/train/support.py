"""Prompts, images and a collator for the training tests."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.boxes import Size
from grpo_stream.grounding.prompts import TEMPLATES
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.stream.sources import StreamSample
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.policy import load_policy
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
