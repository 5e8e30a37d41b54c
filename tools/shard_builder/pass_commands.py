"""The commands that look at every shard: ``verify``, ``index``, ``stats``."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from grpo_stream.errors import ConfigError
from grpo_stream.families import FAMILIES
from grpo_stream.images import ResizeRule
from grpo_stream.shards.linked_sets import open_set
from grpo_stream.storage.store import open_store
from shard_builder.build.progress import num_usable_cores
from shard_builder.counting import counting
from shard_builder.datasets.index_tars import IndexPass
from shard_builder.datasets.judge_reading import reading_lines
from shard_builder.datasets.measure import Measures, StatsPass
from shard_builder.datasets.stats import stats_dict, stats_table
from shard_builder.datasets.verify import VerifyPass
from shard_builder.parts.finish_parts import named_parts
from shard_builder.parts.plan_request import Part
from shard_builder.passes.run_pass import JOIN_WORD, PartDone, PassSettings, run_pass
from shard_builder.passes.shard_pass import ShardPass
from shard_builder.shared_flags import SET_HELP, add_executor

Result = TypeVar("Result")


def add_verify(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``verify``."""
    command.add_argument("url", help=SET_HELP)
    _add_machines(command)
    command.set_defaults(run=_verify)


def add_index(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``index``."""
    command.add_argument("url", help="folder, s3://, gs:// or az:// of WebDataset tars")
    command.add_argument(
        "--overwrite", action="store_true", help="replace a manifest that says otherwise"
    )
    command.add_argument(
        "--accept-reading",
        metavar="NAME",
        help="xyxy-pixels: the boxes are pixels though they look like something else",
    )
    _add_machines(command)
    command.set_defaults(run=_index)


def add_stats(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``stats``."""
    command.add_argument("url", help=SET_HELP)
    command.add_argument("--png", type=Path, metavar="FILE", help="draw them, too")
    command.add_argument("--json", action="store_true", help="print JSON in place of the table")
    rule = ResizeRule()
    multiples = (
        f"{family.processor.resize_multiple} {name}"
        for name, family in FAMILIES.items()
        if family.processor
    )
    for flag, field, what in (
        ("--max-pixels", "max_pixels", "the processor's largest image"),
        ("--min-pixels", "min_pixels", "its smallest"),
        ("--patch-multiple", "multiple", f"sides of one visual token: {', '.join(multiples)}"),
    ):
        default = getattr(rule, field)
        help_text = f"{what} (%(default)s)"
        command.add_argument(flag, dest=field, type=int, default=default, help=help_text)
    _add_machines(command)
    command.set_defaults(run=_stats)


def _add_machines(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers",
        type=int,
        default=num_usable_cores(),
        metavar="N",
        help="tars read at a time, each in a thread (default: cores, %(default)s)",
    )
    add_executor(command, "threads of this machine")
    command.add_argument(
        "--part",
        metavar="I/N",
        help="look at the I-th of N parts, on machines in any order; the last one concludes; "
        f"{JOIN_WORD}/N only concludes, and names the parts that are missing",
    )
    command.add_argument(
        "--parts-at",
        default="",
        metavar="URL",
        help="folder or bucket that all machines share, where parts keep what they find "
        "(default: _parts beside the shards)",
    )


def _part(args: argparse.Namespace) -> Part | None:
    if args.part is None:
        return None
    return Part.parse(args.part, JOIN_WORD, "only joins what parts have found")


def _run(
    one: ShardPass[Result], args: argparse.Namespace, total: int | None
) -> tuple[Result, None] | tuple[None, PartDone]:
    part = _part(args)
    settings = PassSettings(
        workers=args.workers,
        executor=args.executor,
        ray_address=args.ray_address,
        part=part,
        parts_at=args.parts_at,
    )
    if total is not None and part is not None:
        total //= part.num_parts
    with counting(args.progress, one.command, total) as count:
        found = run_pass(one, settings, count)
    return (None, found) if isinstance(found, PartDone) else (found, None)


def _print_part(args: argparse.Namespace, done: PartDone, what: str, num_samples: int) -> None:
    missing = done.missing_parts
    if args.progress == "json":
        facts = {"num_shards": done.num_shards, "num_samples": num_samples}
        print(json.dumps({"part": done.part.name, **facts, "missing_parts": missing}))
        return
    print(
        f"part {done.part.name} {what}: {num_samples} samples in {done.num_shards} shards; not yet "
        f"whole: {named_parts(missing)}"
    )


def _verify(args: argparse.Namespace) -> int:
    store, manifest = open_set(args.url)
    result, part = _run(VerifyPass(store, manifest), args, manifest.num_samples)
    if part is not None:
        _print_part(args, part, "sound", _num_samples(part.part, manifest.sample_counts))
    elif result is not None:
        facts = {"num_samples": result.num_samples, "num_shards": result.num_shards}
        if args.progress == "json":
            print(json.dumps({"sound": True, **facts, "digest": manifest.digest}))
        else:
            words = "{num_samples} samples in {num_shards} shards".format(**facts)
            print(f"sound: {words}, {manifest.digest[:16]}")
    return 0


def _index(args: argparse.Namespace) -> int:
    one = IndexPass(
        open_store(args.url), overwrite=args.overwrite, accept_reading=args.accept_reading
    )
    manifest, part = _run(one, args, None)
    if part is not None:
        print(
            json.dumps({"part": part.part.name, "missing_parts": part.missing_parts})
            if args.progress == "json"
            else f"part {part.part.name} read: {part.num_shards} tars; not yet whole: "
            f"{named_parts(part.missing_parts)}"
        )
    elif manifest is not None:
        num_shards, digest = len(manifest.shards), manifest.digest
        if args.progress == "json":
            facts = {"num_samples": manifest.num_samples, "num_shards": num_shards}
            print(json.dumps({**facts, "digest": digest}))
        else:
            print(f"indexed: {manifest.num_samples} samples in {num_shards} shards, {digest[:16]}")
    return 0


def _stats(args: argparse.Namespace) -> int:
    rule = ResizeRule(args.multiple, args.min_pixels, args.max_pixels)
    save_stats = None if args.png is None else _picture_maker(args.png)
    store, manifest = open_set(args.url)
    found, part = _run(StatsPass(store, manifest, rule), args, manifest.num_samples)
    if found is None:
        assert part is not None  # noqa: S101 - one of the two is there
        _print_part(args, part, "measured", _num_samples(part.part, manifest.sample_counts))
        return 0
    readings = reading_lines(manifest)
    print(
        json.dumps(stats_dict(found) | {"readings": readings})
        if args.json
        else "\n".join([stats_table(found), *(f"{'reading':<20}{line}" for line in readings)])
    )
    if save_stats is not None:
        save_stats(args.png, args.url.rstrip("/").rpartition("/")[2] or args.url, found)
    return 0


def _num_samples(part: Part, sample_counts: NDArray[np.int64]) -> int:
    return int(sample_counts[part.number - 1 :: part.num_parts].sum())


def _picture_maker(path: Path) -> Callable[[Path, str, Measures], None]:
    if not path.parent.is_dir():
        expected = f"must be in a folder that exists: make {path.parent} first"
        raise ConfigError("--png", str(path), expected)
    try:
        from shard_builder.datasets.stats_picture import (  # noqa: PLC0415 - an extra
            save_stats,
        )
    except ImportError as error:
        expected = "drawing needs matplotlib: pip install 'grpo_stream[charts]'"
        raise ConfigError("--png", str(path), expected) from error
    return save_stats
