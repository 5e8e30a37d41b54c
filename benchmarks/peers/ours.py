"""This project's loader as a contestant: ``threads`` or ``processes`` that decode."""

from contextlib import suppress
from typing import Any

import torch

with suppress(ImportError):
    import obstore.store  # noqa: F401 - else it is imported, and timed, when a bucket is opened

from benchmarks.loaders.job import Batch, Job
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.config import CacheSettings, StreamConfig
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import StreamSample, decode_sample


def open_loader(job: Job) -> PromptLoader[Batch]:
    """The loader, at the start of the first epoch."""
    is_threads = job.contestant == "threads"
    config = StreamConfig(
        num_lanes=job.batch_size,
        num_reader_threads=job.num_workers if is_threads else 0,
        num_decode_processes=0 if is_threads else job.num_workers,
        resize=job.rule,
        fetch_ahead_bytes=job.fetch_ahead_bytes or StreamConfig.fetch_ahead_bytes,
    )
    open_sample = keep_sample if job.is_raw else decode_sample
    cache = CacheSettings(job.cache) if job.cache else None
    stream = PromptStream(ShardSource(job.shards, cache=cache), config, open_sample=open_sample)
    return PromptLoader(stream, raw_batch if job.is_raw else decoded_batch)


def keep_sample(sample: Sample, config: StreamConfig) -> Any:  # noqa: ARG001 - what is called
    """A stored sample as it is, for the stream to deliver undecoded."""
    return sample


def raw_batch(samples: list[Any]) -> Batch:
    """Stored samples as a dict of lists."""
    return {
        "key": [sample.key for sample in samples],
        "image": [sample.image for sample in samples],
        "meta": [sample.meta for sample in samples],
    }


def decoded_batch(samples: list[StreamSample]) -> Batch:
    """Stream samples as a dict of lists."""
    return {
        "key": [sample.key for sample in samples],
        "image": [torch.from_numpy(sample.pixels) for sample in samples],
        "meta": [
            {"prompt": sample.prompt, "solution": sample.solution, **sample.extra}
            for sample in samples
        ],
    }
