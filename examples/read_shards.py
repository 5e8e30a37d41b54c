"""Reads shards with plain webdataset, and with PromptLoader in the order of a training run.

After `make setup`:

    . .venv/bin/activate
    shard-builder build data/screenshots/records.json --images-root data/screenshots \
        --out out/examples/shards --samples-per-shard 100
    python examples/read_shards.py out/examples/shards
"""

import sys
from itertools import islice
from pathlib import Path

import webdataset

from grpo_stream import PromptLoader, PromptStream, StreamConfig
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.stream.world import World


def with_webdataset(folder: str, num_samples: int = 3) -> list[str]:
    """The first keys as they are in the tars; boxes are in pixels of the stored image."""
    tars = sorted(map(str, Path(folder).glob("*.tar")))
    samples = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    keys = []
    for sample in islice(samples, num_samples):
        image = sample.get("jpg") or sample.get("png")
        fields = sample["json"]
        print(sample["__key__"], image.size, fields["prompt"], fields["solution"])
        keys.append(sample["__key__"])
    return keys


def with_prompt_loader(folder: str, num_batches: int = 3) -> list[list[str]]:
    """Keys of the generation batches that rank 0 of 2 gets; boxes are in original pixels.

    Pixels are uint8 at the size that the model takes. A folder may be any URL that docs/storage.md
    names; `loader.state_dict()` is the place to resume from.
    """
    config = StreamConfig(num_lanes=8)  # prompts per generation batch, over all ranks
    stream = PromptStream(ShardSource(folder), config, World(rank=0, world_size=2))
    batches = []
    with PromptLoader(stream, list) as loader:
        for samples in islice(loader, num_batches):
            for sample in samples:
                show(sample)
            batches.append([sample.key for sample in samples])
    return batches


def show(sample: StreamSample) -> None:
    """Prints a sample in motion."""
    print(sample.key, sample.pixels.shape, sample.scales, sample.prompt, sample.solution)


if __name__ == "__main__":
    with_webdataset(sys.argv[1])
    with_prompt_loader(sys.argv[1])
