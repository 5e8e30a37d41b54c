"""A look at the data: a page of samples and a contact sheet, every place drawn and enlarged."""

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from grpo_stream.boxes import Box, Size
from grpo_stream.errors import ConfigError, ImageError
from grpo_stream.images import decode
from grpo_stream.report.contact_sheet import contact_sheet, sheet_cell
from grpo_stream.report.gallery import GallerySample, card_html, gallery_page
from grpo_stream.report.html_page import is_foreign_page, write_page
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample
from grpo_stream.shards.solution_field import Solution
from grpo_stream.storage.atomic_files import write_atomic
from grpo_stream.storage.store import Store
from grpo_stream.targets import WANTED_FIELD, read_shape
from shard_builder.datasets.judge_reading import reading_lines
from shard_builder.datasets.scan_shards import OnProgress, no_progress
from shard_builder.datasets.select_samples import Places, find_keys, spread, warned

SHEET_NAME = "contact_sheet.png"
MAX_SAMPLES = 1_000
"""Samples of one page; a browser gets slow beyond."""
MAX_CELLS = 48
"""Samples of one contact sheet."""
MAX_PROMPTS = 20_000
"""Prompts that a search for words looks at."""
_COLUMNS = 4
_NUM_THREADS = 4
_MAX_LISTED = 6


@dataclass(frozen=True)
class Shown:
    """What was shown, and where it lies."""

    page: Path
    sheet: Path
    keys: tuple[str, ...]
    lead: str
    """How the samples were chosen, in a sentence."""


@dataclass(frozen=True)
class _Choice:
    positions: Sequence[int]
    lead: str
    warnings: Mapping[str, Sequence[str]] = field(default_factory=dict)


def show(
    store: Store,
    manifest: Manifest,
    out: Path,
    *,
    num_samples: int = 24,
    seed: int = 0,
    keys: Sequence[str] = (),
    grep: str = "",
    only_warned: bool = False,
    on_progress: OnProgress = no_progress,
) -> Shown:
    """Writes ``index.html`` (self-contained) and ``contact_sheet.png`` into ``out``.

    Samples are spread evenly over the set unless one of ``keys``, ``grep`` and ``only_warned`` is
    given, and are read by one ranged read each. Equal arguments give equal files.

    Args:
        store: Where the data set lies.
        manifest: Of that data set.
        out: Folder, made if missing.
        num_samples: At most this many, at most :data:`MAX_SAMPLES`; with ``keys`` all of them.
        seed: Chooses which.
        keys: Show these, in this order.
        grep: Show samples whose prompt contains this, upper and lower case alike; up to
            :data:`MAX_PROMPTS` samples, spread over the set, are looked at.
        only_warned: Show samples that ``warnings.jsonl`` names, with what it says.
        on_progress: Is told of every sample that is drawn.

    Raises:
        ConfigError: a number cannot work, a key is not there, or nothing is to be shown.
        StoreError: a shard or index cannot be read.
        ShardFormatError: a sample is damaged.
        ImageError: an image cannot be decoded; names its key.
    """
    if not 1 <= max(num_samples, len(keys)) <= MAX_SAMPLES:
        raise ConfigError("--num-samples", num_samples, f"must be 1 to {MAX_SAMPLES}, as in 24")
    if sum(map(bool, (keys, grep, only_warned))) > 1:
        raise ConfigError("--keys, --grep, --warnings", "several", "give one of them")
    if is_foreign_page(out):
        expected = "has an index.html of something else: choose another folder, for example show"
        raise ConfigError("--out", str(out), expected)
    places = Places(store, manifest)
    choice = _choose(places, num_samples, seed, keys, grep, only_warned=only_warned)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        expected = f"must be a folder that can be made ({error.strerror}), for example show"
        raise ConfigError("--out", str(out), expected) from error
    cards, cells, shown = [], [], []
    for key, card, cell in _drawn(places, choice):
        shown.append(key)
        cards.append(card)
        if cell is not None:
            cells.append(cell)
        on_progress(1, 0)
    buffer = io.BytesIO()
    contact_sheet(cells, _COLUMNS, gap=14).save(buffer, "PNG", optimize=True)
    sheet = out / SHEET_NAME
    write_atomic(sheet, buffer.getvalue())
    page = gallery_page(_title(store), choice.lead, _facts(manifest), cards)
    return Shown(write_page(page, out), sheet, tuple(shown), choice.lead)


def _choose(
    places: Places,
    num_samples: int,
    seed: int,
    keys: Sequence[str],
    grep: str,
    *,
    only_warned: bool,
) -> _Choice:
    total = len(places)
    if total == 0:
        raise ConfigError("URL", places.store.url, "holds no sample")
    if keys:
        positions = find_keys(places, keys)
        return _Choice(positions, f"{len(positions)} of {total:,} samples, by key.")
    if grep:
        return _grep(places, grep, num_samples, seed)
    if only_warned:
        warnings = warned(places.store, num_samples, seed)
        lead = f"{len(warnings)} of {total:,} samples, of those that the build warned of."
        return _Choice(find_keys(places, warnings), lead, warnings)
    positions = spread(total, num_samples, seed)
    how = f"spread evenly over the set (seed {seed})" if len(positions) < total else "all there are"
    return _Choice(positions, f"{len(positions)} of {total:,} samples, {how}.")


def _grep(places: Places, text: str, num_samples: int, seed: int) -> _Choice:
    looked_at = spread(len(places), MAX_PROMPTS, seed)
    wanted = text.casefold()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        prompts = pool.map(places.prompt, looked_at)
        pairs = zip(looked_at, prompts, strict=True)
        found = [position for position, prompt in pairs if wanted in prompt.casefold()]
    if not found:
        expected = f"none of {len(looked_at)} prompts looked at contains it; try fewer words"
        raise ConfigError("--grep", text, expected)
    chosen = [found[place] for place in spread(len(found), num_samples, seed)]
    lead = (
        f"{len(chosen)} of {len(found):,} samples whose prompt contains '{text}'; "
        f"{len(looked_at):,} of {len(places):,} prompts were looked at."
    )
    return _Choice(chosen, lead)


def _drawn(places: Places, choice: _Choice) -> Iterator[tuple[str, str, Image.Image | None]]:
    """Key, card and (up to :data:`MAX_CELLS`) sheet cell of each sample, in order."""

    def draw(number: int) -> tuple[str, str, Image.Image | None]:
        position = choice.positions[number]
        sample = places.read(position)
        warnings = choice.warnings.get(sample.key, ())
        shown = as_gallery_sample(sample, places.shard(position), warnings)
        return sample.key, card_html(shown), sheet_cell(shown) if number < MAX_CELLS else None

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        yield from pool.map(draw, range(len(choice.positions)))


def as_gallery_sample(sample: Sample, shard: str, warnings: Sequence[str] = ()) -> GallerySample:
    """Decodes a sample and says what is to be known of it.

    Raises:
        ImageError: an image cannot be decoded; names shard and key.
    """
    where = f"{shard}: key={sample.key!r}"
    images = [_decoded(data, f"{where}: image {n}") for n, (_, data) in enumerate(sample.images)]
    places = list(zip(sample.solution_images, sample.solutions, strict=True))
    return GallerySample(
        title=sample.key,
        prompt=sample.prompt,
        images=images,
        # The frame is that of the stored image, which is what is drawn on.
        shapes=[(lies_in, read_shape(numbers)) for lies_in, numbers in places],
        facts=[("shard", shard), *_image_facts(sample), *_place_facts(sample, places)],
        warnings=warnings,
        extra=sample.extra,
    )


def _decoded(data: bytes | memoryview, where: str) -> Image.Image:
    try:
        return Image.fromarray(decode(data))
    except ImageError as error:
        raise ImageError(error.cause, f"{where}: {error.detail}") from error


def _image_facts(sample: Sample) -> Iterator[tuple[str, str]]:
    several = len(sample.images) > 1
    for number, (suffix, data) in enumerate(sample.images):
        size, original = sample.sizes[number], sample.original_sizes[number]
        text = f"{_by(size)} {suffix}, {len(data) / 1000:,.1f} kB"
        if original != size:
            text += f" (original {_by(original)})"
        yield (f"image {number}" if several else "image"), text


def _place_facts(
    sample: Sample, places: Sequence[tuple[int, Solution]]
) -> Iterator[tuple[str, str]]:
    if not places:
        is_absent = sample.meta.get(WANTED_FIELD) == "none"
        yield "target", "not there" if is_absent else "none is asked for"
    if len(places) > 1:
        yield "wanted", str(sample.meta.get(WANTED_FIELD, "any"))
    for number, (lies_in, numbers) in enumerate(places[:_MAX_LISTED]):
        shape = read_shape(numbers)
        name = type(shape).__name__.lower()
        where = f" in image {lies_in}" if len(sample.images) > 1 else ""
        listed = ", ".join(f"{value:.10g}" for value in numbers)
        yield (f"{name} {number + 1}" if len(places) > 1 else name), listed + where
        if isinstance(shape, Box) and len(places) == 1:
            size = sample.sizes[lies_in]
            share = 100 * shape.area / (size.width * size.height)
            sides = f"{shape.width:g}\N{MULTIPLICATION SIGN}{shape.height:g}"
            yield "size", f"{sides} pixels, {share:.2g}\N{NO-BREAK SPACE}%"
    if len(places) > _MAX_LISTED:
        yield "", f"and {len(places) - _MAX_LISTED} more"


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    num_mib = sum(shard.num_bytes for shard in manifest.shards) / 2**20
    return [
        ("samples", f"{manifest.num_samples:,}"),
        ("shards", f"{len(manifest.shards):,}"),
        ("size", f"{num_mib:,.1f} MiB"),
        ("rejected records", f"{sum(manifest.rejects.values()):,}"),
        ("warnings", f"{manifest.totals.get('num_warnings', 0):,}"),
        ("digest", manifest.digest[:8]),
        *(("reading", line) for line in reading_lines(manifest)),
    ]


def _title(store: Store) -> str:
    return f"Data set {store.url.rstrip('/').rpartition('/')[2] or store.url}"


def _by(size: Size) -> str:
    return f"{size.width}\N{MULTIPLICATION SIGN}{size.height}"
