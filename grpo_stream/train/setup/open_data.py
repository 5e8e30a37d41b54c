"""From a user's settings to the prompt stream that a trainer reads."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.prompts import PromptTemplate
from grpo_stream.grounding.template_words import NEEDS_SEVERAL
from grpo_stream.images import ImageLimits, ResizeRule
from grpo_stream.order.stream_plan import SourceCounts, StreamPlan
from grpo_stream.storage.retry_policy import RetryRules
from grpo_stream.stream.config import CacheSettings, StreamConfig
from grpo_stream.stream.open_records import open_records
from grpo_stream.stream.open_shards import open_shards, parse_shards
from grpo_stream.stream.prompt_stream import Open, PromptStream
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.stream.sources import ShardSource, Source
from grpo_stream.stream.stream_sample import decode_sample
from grpo_stream.stream.world import World
from grpo_stream.train.models.processor import known_rule
from grpo_stream.train.setup.arguments import DataArguments
from grpo_stream.train.setup.difficulty_file import select_by_difficulty
from grpo_stream.train.setup.node_manifests import load_manifests


@dataclass(frozen=True)
class OpenSources:
    """Data sets that were found and opened, and their shares of each generation batch."""

    names: list[str]
    """URLs, folders or a JSON file, as the user wrote them."""
    sources: Sequence[Source]
    weights: list[str]

    def plan(self, config: StreamConfig) -> StreamPlan:
        """The order in which a stream of these settings reads them.

        Raises:
            ConfigError: too few samples, the same data twice, or weights that cannot be kept.
        """
        counts = [
            SourceCounts(source.digest, source.shard_counts, weight)
            for source, weight in zip(self.sources, self.weights, strict=True)
        ]
        return StreamPlan(counts, config.num_lanes, config.stream_seed, config.block_shards)


def open_sources(data: DataArguments) -> OpenSources:
    """The shards or raw records that the settings name.

    Raises:
        ConfigError: they name none, a file that is not there, or a setting cannot work.
        ManifestError: the shards have no manifest.
        StoreError: they cannot be reached.
    """
    data.check()
    found = _open_shards(data, data.shards) if data.shards is not None else _open_json(data)
    difficulty = data.difficulty_settings()
    if difficulty is None:
        return found
    return replace(found, sources=[select_by_difficulty(found.sources[0], difficulty)])


def _open_json(data: DataArguments) -> OpenSources:
    path = str(data.json)
    limits = image_limits(data)
    source = open_records(
        [path], data.format, data.images_root, flags=data.rule_flags(), limits=limits
    )
    return OpenSources([path], [source], ["1"])


def open_eval_sources(data: DataArguments) -> OpenSources | None:
    """The shards for evaluation while training; None where the settings name none.

    Raises:
        ConfigError, ManifestError, StoreError: as :func:`open_sources`.
    """
    if data.eval_shards is None:
        return None
    with _renamed({"shards": "eval_shards"}):
        return _open_shards(data, data.eval_shards)


def open_source(data: DataArguments) -> Source:
    """The one data set that the settings name, where several make no sense.

    Raises:
        ConfigError, ManifestError, StoreError: as :func:`open_sources`.
    """
    if data.shards is not None and len(data.shards) > 1:
        expected = f"is read one data set at a time: give one, as in shards={data.shards[0]}"
        raise ConfigError("shards", data.shards, expected)
    return open_sources(data).sources[0]


def make_stream(
    data_sets: OpenSources,
    data: DataArguments,
    *,
    num_lanes: int,
    seed: int,
    image_processor: Any,
    world: World,
    open_sample: Open = decode_sample,
) -> PromptStream:
    """The stream of ``data_sets`` for this rank.

    Args:
        data_sets: Shards or raw records.
        data: How they are read.
        num_lanes: Prompts per generation batch over all ranks.
        seed: Of the order, where ``data.stream_seed`` is None.
        image_processor: Its target size is what the stream resizes to; a family that has none
            (``known_rule``) gets the images as they are.
        world: This process.
        open_sample: What is made of a sample at rest.

    Raises:
        ConfigError: the world size does not divide the lanes, or there are too few samples.
    """
    config = stream_config(data, num_lanes=num_lanes, seed=seed, rule=known_rule(image_processor))
    return PromptStream(
        data_sets.sources, config, world, weights=data_sets.weights, open_sample=open_sample
    )


def stream_config(
    data: DataArguments, *, num_lanes: int, seed: int, rule: ResizeRule | None
) -> StreamConfig:
    """The stream's settings among a user's; see :func:`make_stream`.

    Raises:
        ConfigError: one of them cannot work.
    """
    with _renamed({"stream_seed": "seed"} if data.stream_seed is None else {}):
        return StreamConfig(
            num_lanes=num_lanes,
            stream_seed=seed if data.stream_seed is None else data.stream_seed,
            block_shards=data.block_shards,
            num_reader_threads=data.num_reader_threads,
            num_decode_processes=data.num_decode_processes,
            prefetch_batches=data.prefetch_batches,
            num_fetch_threads=data.num_fetch_threads,
            fetch_ahead_bytes=data.num_bytes("fetch_ahead_bytes"),
            max_bad_samples=data.max_bad_samples,
            max_sample_bytes=data.num_bytes("max_sample_bytes"),
            max_prompt_tokens=data.max_prompt_tokens,
            max_total_pixels=data.max_total_pixels,
            resize=rule,
            limits=image_limits(data),
        )


def check_template(template: PromptTemplate, sources: Sequence[Source]) -> None:
    """Checks that a template has room for the images of samples.

    Raises:
        ConfigError: there are samples of several, and it names the width and height of one.
    """
    if template.takes_several:
        return
    for source in sources:
        count = getattr(source, "num_multi_image", 0)
        if count:
            found = f"{count} samples of several images"
            raise ConfigError("prompt_template", found, NEEDS_SEVERAL)


def check_all_have_images(sources: Sequence[Source], num_ranks: int) -> None:
    """Checks that ranks of supervised training call the vision tower equally often.

    Raises:
        ConfigError: samples have no image, and there are several ranks.
    """
    for source in sources if num_ranks > 1 else ():
        count = source.num_text_only if isinstance(source, ShardSource | RecordSource) else 0
        if count:
            expected = (
                "cannot be taught on several ranks, which call the vision tower equally often: "
                "leave them out, or train on one rank"
            )
            raise ConfigError("shards", f"{count} samples without images", expected)


def image_limits(data: DataArguments) -> ImageLimits:
    """What an image may be at most."""
    return ImageLimits(max_image_pixels=data.max_image_pixels)


def _open_shards(data: DataArguments, words: Sequence[str]) -> OpenSources:
    urls, weights = parse_shards(words)
    cache = None
    if data.cache_dir is not None:
        cache = CacheSettings(data.cache_dir, data.num_bytes("cache_bytes"))
    retry = RetryRules(retry_deadline_seconds=data.retry_deadline_seconds)
    sources = open_shards(
        urls,
        cache=cache,
        retry=retry,
        max_sample_bytes=data.num_bytes("max_sample_bytes"),
        manifests=load_manifests(urls, retry),
    )
    return OpenSources(urls, sources, weights)


@contextlib.contextmanager
def _renamed(names: dict[str, str]) -> Iterator[None]:
    """Errors name a setting as the user writes it."""
    try:
        yield
    except ConfigError as error:
        if error.field not in names:
            raise
        raise ConfigError(names[error.field], error.value, error.expected) from None
