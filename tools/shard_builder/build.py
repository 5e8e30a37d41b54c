"""The build: every record judged, samples packed, rejects and warnings listed, manifest last."""

import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from tqdm import tqdm

import grpo_stream
from grpo_stream.errors import ConfigError, ImageError, RecordError
from grpo_stream.images import ImageLimits
from grpo_stream.shards.manifest import MANIFEST_NAME, MANIFEST_VERSION, Manifest
from grpo_stream.shards.sample import SCHEMA_VERSION
from grpo_stream.shards.store import LocalStore
from tools.shard_builder.inputs.json_text import read_records
from tools.shard_builder.judge import Rules, Verdict, judge
from tools.shard_builder.ledger import REJECTS_NAME, WARNINGS_NAME, Ledger, Place
from tools.shard_builder.pack import Packer, ShardLimits
from tools.shard_builder.pictures import ImageReader, PictureRules

_OURS = ("shard-*.tar", "shard-*.tar.idx", ".shard-*.tmp", REJECTS_NAME, WARNINGS_NAME)


@dataclass(frozen=True)
class BuildSettings:
    """Everything that a build depends on."""

    inputs: tuple[Path, ...]
    images_root: Path
    out: Path
    rules: Rules = field(default_factory=Rules)
    where: tuple[tuple[str, str], ...] = ()
    """Only records whose fields have these values, as in ``(("split", "train"),)``; others are
    passed over without a word."""
    limits: ShardLimits = field(default_factory=ShardLimits)
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    shuffle_seed: int | None = None
    """Shuffles all records before packing, which holds them in memory; None keeps their order."""
    max_rejects: int | None = None
    """Rejected records after which the build stops; None for any number, 0 for none at all."""
    overwrite: bool = False
    """Replace the data set in ``out``."""
    dry_run: bool = False
    """Judge everything, write nothing."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True)
class BuildResult:
    """What a build did."""

    num_records: int
    num_samples: int
    rejects: dict[str, int]
    """Rejected records by cause."""
    warnings: dict[str, int]
    """Warnings by cause."""
    first_rejects: list[str]
    """The first few, for people."""
    manifest: Manifest | None
    """None after a dry run."""


def build(settings: BuildSettings) -> BuildResult:
    """Builds a data set; equal inputs and settings give equal files.

    The inputs are read twice, first to find damaged files and to count, so that a file that was
    cut short is known before a shard is written.

    Raises:
        ConfigError: a path or setting cannot work; nothing was written.
        RecordError: an input file is damaged, there are too many rejects, or no sample is left;
            there is no manifest then.
    """
    _check(settings)
    num_records = sum(1 for _ in _in_order(settings))
    if not settings.dry_run:
        _make_room(settings.out)
    with ExitStack() as stack:
        ledger = Ledger(settings.rules.image_key, settings.max_rejects)
        if not settings.dry_run:
            ledger.write_to(settings.out, stack)
        packer = None if settings.dry_run else Packer(settings.out, settings.limits)
        if packer is not None:
            stack.callback(packer.discard)
        bar = tqdm(total=num_records, unit=" records", disable=settings.quiet, desc="build")
        stack.enter_context(bar)
        for verdict in _verdicts(settings, ledger):
            if verdict is not None and packer is not None:
                packer.add(verdict.sample)
            bar.set_postfix(ledger.postfix(), refresh=False)
            bar.update()
        if ledger.num_samples == 0:
            raise RecordError("no_samples", f"{num_records} records, no sample{ledger.hint()}")
        shards = () if packer is None else packer.close()
    manifest = None
    if packer is not None:
        manifest = Manifest(
            version=MANIFEST_VERSION,
            shards=shards,
            settings=_portable(settings),
            builder_version=grpo_stream.__version__,
            totals={
                "num_records": num_records,
                "num_samples": ledger.num_samples,
                "num_bytes": sum(shard.num_bytes for shard in shards),
                "num_rejects": ledger.rejects.total(),
                "num_warnings": ledger.warnings.total(),
            },
            rejects=dict(sorted(ledger.rejects.items())),
        )
        manifest.save(LocalStore(settings.out))
    return BuildResult(
        num_records=num_records,
        num_samples=ledger.num_samples,
        rejects=dict(ledger.rejects.most_common()),
        warnings=dict(ledger.warnings.most_common()),
        first_rejects=ledger.first_rejects,
        manifest=manifest,
    )


def make_key(position: int, image_path: str) -> str:
    """A sample's key: its record's position over all inputs, then what its image is called.

    The position makes it unique whatever the case of letters, and does not depend on what else
    was rejected.
    """
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePath(image_path).stem).strip("-")[:40]
    return f"{position:09d}_{stem}" if stem else f"{position:09d}"


def _verdicts(settings: BuildSettings, ledger: Ledger) -> Iterator[Verdict | None]:
    reader = ImageReader(str(settings.images_root), PictureRules(limits=settings.image_limits))
    for place, record in _records(settings):
        image = record.get(settings.rules.image_key) if isinstance(record, dict) else None
        key = make_key(place.position, image if isinstance(image, str) else "")
        try:
            if isinstance(record, RecordError):
                raise record
            verdict = judge(record, key, settings.rules, reader.load)
        except (RecordError, ImageError) as error:
            ledger.reject(place, record, error)
            yield None
        else:
            ledger.take(place, record, verdict)
            yield verdict


def _records(settings: BuildSettings) -> Iterator[tuple[Place, Any]]:
    if settings.shuffle_seed is None:
        yield from _in_order(settings)
        return
    records = list(_in_order(settings))
    random.Random(settings.shuffle_seed).shuffle(records)  # noqa: S311 - no secret
    yield from records


def _in_order(settings: BuildSettings) -> Iterator[tuple[Place, Any]]:
    position = 0
    for path in settings.inputs:
        for index, record in enumerate(read_records(path)):
            if _is_wanted(record, settings.where):
                yield Place(position, path, index), record
            position += 1


def _is_wanted(record: Any, where: tuple[tuple[str, str], ...]) -> bool:
    if not isinstance(record, dict):
        return True  # a bad record is for the judge
    return all(name in record and str(record[name]) == value for name, value in where)


def _portable(settings: BuildSettings) -> dict[str, Any]:
    """The settings that decided the content, without the machine's paths."""
    return {
        "schema_version": SCHEMA_VERSION,
        "inputs": [path.name for path in settings.inputs],
        "where": [list(pair) for pair in settings.where],
        "rules": asdict(settings.rules),
        "shard_limits": asdict(settings.limits),
        "image_limits": asdict(settings.image_limits),
        "shuffle_seed": settings.shuffle_seed,
    }


def _check(settings: BuildSettings) -> None:
    for path in settings.inputs:
        if not path.is_file():
            raise ConfigError("INPUT", str(path), "must be a JSON or JSON Lines file that exists")
        is_in_out = settings.out.is_dir() and path.resolve().parent == settings.out.resolve()
        if is_in_out and any(path.match(pattern) for pattern in _OURS):
            raise ConfigError("INPUT", str(path), "is replaced by the build: give a copy elsewhere")
    if not settings.images_root.is_dir():
        root = str(settings.images_root)
        raise ConfigError("--images-root", root, "must be the folder that image paths start from")
    for name, value in (
        ("--samples-per-shard", settings.limits.max_samples),
        ("--max-shard-bytes", settings.limits.max_bytes),
    ):
        if value < 1:
            raise ConfigError(name, value, "must be at least 1, for example 1000 and 256MiB")
    if settings.dry_run or settings.overwrite or not settings.out.is_dir():
        return
    if (settings.out / MANIFEST_NAME).exists():
        expected = "holds a data set: choose another folder or add --overwrite"
        raise ConfigError("--out", str(settings.out), expected)
    if any(settings.out.glob(_OURS[0])):
        expected = "holds shards without a manifest (a build that stopped?): add --overwrite"
        raise ConfigError("--out", str(settings.out), expected)


def _make_room(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST_NAME).unlink(missing_ok=True)  # first: from here on it is no data set
        for pattern in _OURS:
            for path in out.glob(pattern):
                path.unlink()
    except OSError as error:
        expected = f"must be a folder that can be written ({error.strerror})"
        raise ConfigError("--out", str(out), expected) from error
