"""What a data set holds, as one picture."""

from PIL import Image

from grpo_stream.report.panels import Panel, bars, heat_map, histogram, sheet
from shard_builder.datasets.measure import Measures
from shard_builder.datasets.streaming_quantiles import Spread

_NUM_BARS = 48


def draw_stats(name: str, found: Measures) -> Image.Image:
    """Sizes, places, lengths and causes on one sheet of 2,512 x 1,872 pixels.

    Args:
        name: Of the data set, for the heading.
        found: From :func:`shard_builder.datasets.measure.measure`.
    """
    rule = found.rule
    tiny = f"under a token: {_share(found.num_narrow_boxes, found.num_boxes)} in a side"
    each = f"{rule.multiple}x{rule.multiple} pixels each"
    most = f"at most {rule.max_pixels // rule.multiple**2:,}"
    causes = [(f"rejected: {cause}", count) for cause, count in found.rejects.most_common()]
    causes += [(f"warned: {cause}", count) for cause, count in found.warnings.most_common()]
    sizes = found.sizes.counts.most_common()
    num_mib = found.num_bytes / 2**20
    lead = (
        f"{found.num_samples:,} samples in {found.num_shards:,} shards, {num_mib:,.1f} MiB, "
        f"{found.tokens.total:,.0f} visual tokens, digest {found.digest[:12]}"
    )
    formats = ", ".join(f"{suffix} {count:,}" for suffix, count in found.formats.most_common())
    return sheet(
        f"Data set {name}",
        lead,
        [
            bars("Image sizes", formats, sizes, found.width.count),
            _spread("Width / height", found.aspect_ratio, ".2f"),
            _spread(f"Visual tokens per image, {each}", found.tokens, ",.0f", most),
            heat_map(
                "Where the places are",
                f"centres of {found.num_boxes + found.num_points:,} boxes and points, in the image",
                found.centres,
            ),
            _spread("Box area / image area", found.box_share, ".2%"),
            _spread("Shorter side of the boxes, pixels", found.box_side, ",.0f", tiny),
            _spread("Prompt, characters", found.prompt_chars, ",.0f"),
            _spread("Image file, bytes", found.image_bytes, ",.0f"),
            bars("Rejected and warned of", "records by cause", causes, 0),
        ],
    )


def _spread(title: str, spread: Spread, spec: str, more: str = "") -> Panel:
    counts, start, end = spread.bars(_NUM_BARS)
    if not counts:
        return histogram(title, more, counts, (1, 1))
    median = spread.quantile(0.5)
    said = f"{spread.low:{spec}} to {spread.high:{spec}}, median {median:{spec}} (line)"
    return histogram(title, f"{said}; {more}" if more else said, counts, (start, end), median)


def _share(count: int, total: int) -> str:
    return f"{count / total:.0%}" if total else "none"
