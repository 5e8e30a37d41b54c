"""What a run's stream will do, in words: the lines that ``--dry-run`` and every run print."""

from grpo_stream.boxes import Frame
from grpo_stream.errors import GrpoStreamError
from grpo_stream.grounding.frames import frame_size
from grpo_stream.grounding.prompts import PromptTemplate, render
from grpo_stream.images import ResizeRule
from grpo_stream.order.stream_plan import StreamPlan
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.sources import ShardSource
from grpo_stream.train.setup.arguments import DataArguments
from grpo_stream.train.setup.open_data import OpenSources

_MB = 10**6
_ROUNDED_FROM = 10


def describe_data(data_sets: OpenSources, plan: StreamPlan) -> list[tuple[str, str]]:
    """Label and value for each data set; of several, their shares."""
    lines = []
    is_blend = len(data_sets.sources) > 1
    for name, source, weight, num_batches in zip(
        data_sets.names, data_sets.sources, plan.weights, plan.source_batches, strict=True
    ):
        counts = source.shard_counts
        value = f"{name}, digest {source.digest[:12]}, {counts.sum():,} in {len(counts):,} shards"
        if isinstance(source, ShardSource) and source.manifest.is_older:
            value += "; of an older version: shard-builder index ties its files to each other"
        if is_blend:
            prompts = weight * plan.num_lanes
            mean = "" if prompts.denominator == 1 else " on average"
            value += (
                f"; {weight} of the prompts, {float(prompts):g} of each "
                f"generation batch{mean}, begins again after {num_batches:,}"
            )
        lines.append(("data", "\n".join([value, *getattr(source, "readings", ())])))
    return lines


def describe_epoch(data_sets: OpenSources, plan: StreamPlan) -> tuple[str, str]:
    """Label and value: how long an epoch is."""
    batches = f"{plan.num_batches:,} generation batches"
    if len(data_sets.sources) > 1:
        return "epoch", f"{batches}: as many prompts as all data sets have samples"
    num_samples = int(data_sets.sources[0].shard_counts.sum())
    num_reserve = num_samples - plan.num_batches * plan.num_lanes
    return "epoch", f"{batches}, {num_reserve} samples in reserve"


def describe_generation(
    num_prompts: int, num_generations: int, refill: int, num_views: int = 1
) -> tuple[str, str]:
    """What one rollout samples over all ranks.

    Args:
        num_prompts: That are trained on.
        num_generations: Completions of each.
        refill: ``refill_zero_variance``.
        num_views: Of each prompt.
    """
    text = f"{num_prompts} prompts x {num_generations} completions over all ranks"
    if num_views > 1:
        text += f", {num_generations // num_views} of each of {num_views} views"
    if refill:
        text += f", of up to {num_prompts * (1 + refill)} prompts that are sampled"
    return "generation batch", text


def describe_memory(
    data_sets: OpenSources,
    config: StreamConfig,
    num_ranks: int,
    max_pixels: int | None,
    num_views: int = 1,
) -> tuple[str, str]:
    """Label and value: what the stream holds at most, on each rank.

    ``prefetch_batches + 1`` decoded generation batches, and ``fetch_ahead_bytes`` where samples
    are fetched apart from decoding.

    Args:
        data_sets: What is read.
        config: How it is read.
        num_ranks: Ranks of the run.
        max_pixels: Of an image after resizing; None where only the model knows.
        num_views: Of each prompt.
    """
    num_images = (config.prefetch_batches + 1) * (config.num_lanes // num_ranks) * num_views
    of_each = "images"
    if config.max_total_pixels and max_pixels is not None:
        of_each, max_pixels = "samples with images", config.max_total_pixels
    elif any(getattr(source, "num_multi_image", 0) for source in data_sets.sources):
        of_each = "samples, were they of one image,"
    num_bytes = 0
    fetched = ""
    if config.num_decode_processes or any(source.is_remote for source in data_sets.sources):
        num_bytes = config.fetch_ahead_bytes
        fetched = f" and {_megabytes(num_bytes)} fetched ahead"
    if max_pixels is None:
        return "stream memory", f"a rank: {num_images} decoded images{fetched}"
    num_bytes += num_images * max_pixels * 3
    images = f"{num_images} {of_each} of up to {max_pixels:,} pixels"
    return "stream memory", f"at most {_megabytes(num_bytes)} a rank: {images}{fetched}"


def describe_cache(data: DataArguments) -> list[tuple[str, str]]:
    """Label and value of the shard cache, if there is one."""
    if data.cache_dir is None:
        return []
    size = _megabytes(data.num_bytes("cache_bytes"))
    return [("shard cache", f"{data.cache_dir}, at most {size} a machine")]


def describe_prompt(
    data_sets: OpenSources, template: PromptTemplate, frame: Frame | None, rule: ResizeRule | None
) -> tuple[str, str]:
    """Label and value: what is put to the model for the first sample, which is read for it.

    Args:
        data_sets: What is read.
        template: The words around an instruction.
        frame: Frame that the model answers in; None where only the model knows.
        rule: Sizes of its images; None where only the model knows.
    """
    label = "first prompt"
    try:
        sample = data_sets.sources[0].read(0, 0)
    except GrpoStreamError as error:
        return label, f"cannot be shown: {error}"
    sizes, note = sample.sizes, " (with the image's size: the model's is not known yet)"
    if frame is not None and (rule is not None or frame != "model"):
        models = sizes if rule is None else tuple(map(rule.target, sizes))
        sizes = tuple(
            frame_size(frame, model_size=model, original_size=original)
            for model, original in zip(models, sample.original_sizes, strict=True)
        )
        note = ""
    return label, f"of sample {sample.key}{note}\n{render(template, sample.prompt, *sizes)}"


def _megabytes(num_bytes: int) -> str:
    size = num_bytes / _MB
    return f"{size:,.0f} MB" if size >= _ROUNDED_FROM else f"{size:.2g} MB"
