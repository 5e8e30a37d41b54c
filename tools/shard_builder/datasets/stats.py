"""What a data set holds, as a table for people and as JSON for programs."""

from collections import Counter
from typing import Any

from shard_builder.datasets.measure import Measures
from shard_builder.datasets.streaming_quantiles import Spread

_NUM_SIZES = 8
_HEADER = ("", "min", "5 %", "median", "95 %", "max", "mean")


def stats_table(found: Measures) -> str:
    """A table of plain text."""
    rule = found.rule
    num_places = found.num_boxes + found.num_points
    num_images = found.width.count
    facts = [
        ("samples", f"{found.num_samples:,} in {found.num_shards:,} shards"),
        ("bytes", f"{found.num_bytes:,}"),
        ("digest", found.digest),
        ("rejected records", _counts(found.rejects)),
        ("warnings", _counts(found.warnings)),
        ("images", f"{num_images:,}: {_counts(found.formats)}"),
        ("image sizes", _sizes(found)),
        ("boxes, points", f"{found.num_boxes:,}, {found.num_points:,}"),
    ]
    if found.num_multi_image or found.num_multi_box:
        several = f"{found.num_multi_image:,} of several images, {found.num_multi_box:,} of several"
        facts.append(("samples", f"{several} boxes or points"))
    if found.num_text_only:
        facts.append(("samples", f"{found.num_text_only:,} without images"))
    spreads = [
        ("image width, px", found.width, ",.0f", 1),
        ("image height, px", found.height, ",.0f", 1),
        ("width / height", found.aspect_ratio, ".2f", 1),
        ("image, kB", found.image_bytes, ",.1f", 1e-3),
        ("box width, px", found.box_width, ",.0f", 1),
        ("box height, px", found.box_height, ",.0f", 1),
        ("shorter side, px", found.box_side, ",.0f", 1),
        ("box, % of image", found.box_share, ".3g", 100),
        ("prompt, characters", found.prompt_chars, ",.0f", 1),
        ("tokens per image", found.tokens, ",.0f", 1),
    ]
    area = rule.multiple**2
    setting = (
        f"at {rule.multiple}x{rule.multiple} pixels a token, images of "
        f"{rule.min_pixels // area:,} to {rule.max_pixels // area:,} tokens "
        f"(--patch-multiple {rule.multiple} --min-pixels {rule.min_pixels} "
        f"--max-pixels {rule.max_pixels})"
    )
    tokens = [
        ("tokens in all", f"{found.tokens.total:,.0f}"),
        ("boxes under a token", f"{_share(found.num_tiny_boxes, found.num_boxes)} in both sides"),
        ("", f"{_share(found.num_narrow_boxes, found.num_boxes)} in one side at least"),
    ]
    if found.num_untokenised:
        images = "image is" if found.num_untokenised == 1 else "images are"
        refused = f"{found.num_untokenised:,} {images} longer than 200 to 1: no processor takes it"
        tokens.append(("refused", refused))
    grid = [f"{_HEADER[0]:<20}" + "".join(f"{word:>11}" for word in _HEADER[1:])]
    grid += [_row(name, spread, spec, factor) for name, spread, spec, factor in spreads]
    lines = [f"{name:<20}{value}" for name, value in facts]
    lines += ["", *grid, "", f"visual tokens {setting}"]
    lines += [f"{name:<20}{value}" for name, value in tokens]
    if num_places:
        lines += [
            "",
            "boxes and image sides are in pixels of the stored images; quantiles to 1.1 %",
        ]
    return "\n".join(lines)


def stats_dict(found: Measures) -> dict[str, Any]:
    """The same as JSON values, and the heat map."""
    spreads = {
        "image_width_px": found.width,
        "image_height_px": found.height,
        "image_aspect_ratio": found.aspect_ratio,
        "image_bytes": found.image_bytes,
        "box_width_px": found.box_width,
        "box_height_px": found.box_height,
        "box_shorter_side_px": found.box_side,
        "box_share_of_image": found.box_share,
        "prompt_chars": found.prompt_chars,
        "tokens_per_image": found.tokens,
    }
    return {
        "digest": found.digest,
        "num_samples": found.num_samples,
        "num_shards": found.num_shards,
        "num_bytes": found.num_bytes,
        "num_images": found.width.count,
        "num_boxes": found.num_boxes,
        "num_points": found.num_points,
        "num_multi_image": found.num_multi_image,
        "num_multi_box": found.num_multi_box,
        "num_text_only": found.num_text_only,
        "rejects": dict(found.rejects.most_common()),
        "warnings": dict(found.warnings.most_common()),
        "formats": dict(found.formats.most_common()),
        "image_sizes": dict(found.sizes.counts.most_common()),
        "num_other_image_sizes": found.sizes.num_others,
        "processor": {
            "patch_multiple": found.rule.multiple,
            "min_pixels": found.rule.min_pixels,
            "max_pixels": found.rule.max_pixels,
        },
        "num_tokens": int(found.tokens.total),
        "num_boxes_under_a_token": found.num_tiny_boxes,
        "num_boxes_with_a_side_under_a_token": found.num_narrow_boxes,
        "num_images_beyond_200_to_1": found.num_untokenised,
        "centres": found.centres.tolist(),
        **{name: spread.to_dict() for name, spread in spreads.items()},
    }


def _row(name: str, spread: Spread, spec: str, factor: float) -> str:
    if not spread.count:
        return f"{name:<20}{'none':>11}"
    values = [spread.quantile(share) for share in (0, 0.05, 0.5, 0.95, 1)] + [spread.mean]
    return f"{name:<20}" + "".join(f"{value * factor:>11{spec}}" for value in values)


def _sizes(found: Measures) -> str:
    listed = [f"{name} {count:,}" for name, count in found.sizes.counts.most_common(_NUM_SIZES)]
    num_more = len(found.sizes.counts) - len(listed)
    more = f", and {num_more:,} other sizes" if num_more else ""
    if found.sizes.num_others:
        more = f", and more than {num_more:,} other sizes"
    return ", ".join(listed) + more


def _counts(counter: Counter[str]) -> str:
    if not counter:
        return "none"
    listed = ", ".join(f"{cause} {count:,}" for cause, count in counter.most_common())
    return f"{counter.total():,} ({listed})" if len(counter) > 1 else listed


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({count / total:.1%})" if total else "none"
