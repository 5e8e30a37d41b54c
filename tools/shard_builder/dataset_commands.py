"""The commands on finished data sets: all but ``build``."""

import argparse
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from grpo_stream.errors import ConfigError
from grpo_stream.families import FAMILIES
from grpo_stream.images import ResizeRule
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import Store, open_store
from shard_builder.build.chunk_plan import ShardLimits, Splits
from shard_builder.build.progress import Progress, ProgressMode, num_usable_cores, show_progress
from shard_builder.datasets.index_tars import index_tars
from shard_builder.datasets.judge_reading import reading_lines
from shard_builder.datasets.measure import Measures, measure
from shard_builder.datasets.rewrite import head, merge, split
from shard_builder.datasets.show import show
from shard_builder.datasets.stats import stats_dict, stats_table
from shard_builder.datasets.verify import verify
from shard_builder.parts.plan_request import Part
from shard_builder.shared_flags import add_shard_limits, add_split_flag

_SET_HELP = "folder, s3://, gs://, az:// or https:// of a data set"


def add_verify(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``verify``."""
    command.add_argument("url", help=_SET_HELP)
    command.add_argument(
        "--part",
        type=Part.parse,
        default=Part(1, 1),
        metavar="I/N",
        help="every N-th shard only, on one of N machines; keys are compared within the part",
    )
    _add_workers(command)
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
    _add_workers(command)
    command.set_defaults(run=_index)


def add_stats(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``stats``."""
    command.add_argument("url", help=_SET_HELP)
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
    command.set_defaults(run=_stats)


def add_show(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``show``."""
    add = command.add_argument
    add("url", help=_SET_HELP)
    add("--out", type=Path, default=Path("show"), metavar="DIR", help="(%(default)s)")
    add(
        "--num-samples", type=int, default=24, metavar="N", help="spread over the set (%(default)s)"
    )
    add("--seed", type=int, default=0, help="decides which (%(default)s)")
    add("--keys", nargs="+", default=[], metavar="KEY", help="these")
    add("--grep", default="", metavar="TEXT", help="those whose prompt contains TEXT")
    add("--warnings", action="store_true", help="those that warnings.jsonl names")
    command.set_defaults(run=_show)


def add_head(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``head``."""
    command.add_argument("url", help=_SET_HELP)
    command.add_argument("--num-samples", type=int, required=True, metavar="N", help="at most")
    _add_out(command)
    command.set_defaults(run=_head)


def add_merge(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``merge``."""
    command.add_argument("urls", nargs="+", metavar="url", help=_SET_HELP)
    command.add_argument(
        "--prefix",
        action="append",
        default=[],
        metavar="P",
        help="put before the keys of a set, to keep them unique; one for each set, in their order",
    )
    _add_out(command)
    command.set_defaults(run=_merge)


def add_split(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``split``."""
    command.add_argument("url", help=_SET_HELP)
    add_split_flag(command)
    add_shard_limits(command)
    _add_out(command)
    command.set_defaults(run=_split)


def _verify(args: argparse.Namespace) -> int:
    store, manifest = _open(args.url)
    part: Part = args.part
    if part.number == 0:
        raise ConfigError("--part", part.name, "is for builds: give a part, as in 3/10")
    with _counting(args.progress, "verify", manifest.num_samples // part.num_parts) as count:
        numbers = (part.number, part.num_parts)
        result = verify(store, manifest, workers=args.workers, part=numbers, on_progress=count)
    num_shards, digest = result.num_shards, manifest.digest
    if args.progress == "json":
        facts = {"num_samples": result.num_samples, "num_shards": num_shards, "digest": digest}
        print(json.dumps({"sound": True, "part": part.name, **facts}))
    else:
        which = f"part {part.name} sound" if part.num_parts > 1 else "sound"
        print(f"{which}: {result.num_samples} samples in {num_shards} shards, {digest[:16]}")
    return 0


def _index(args: argparse.Namespace) -> int:
    with _counting(args.progress, "index", None) as count:
        manifest = index_tars(
            args.url,
            workers=args.workers,
            overwrite=args.overwrite,
            accept_reading=args.accept_reading,
            on_progress=count,
        )
    num_shards, digest = len(manifest.shards), manifest.digest
    if args.progress == "json":
        facts = {"num_samples": manifest.num_samples, "num_shards": num_shards, "digest": digest}
        print(json.dumps(facts))
    else:
        print(f"indexed: {manifest.num_samples} samples in {num_shards} shards, {digest[:16]}")
    return 0


def _stats(args: argparse.Namespace) -> int:
    rule = ResizeRule(args.multiple, args.min_pixels, args.max_pixels)
    save_stats = None if args.png is None else _picture_maker(args.png)
    store, manifest = _open(args.url)
    with _counting(args.progress, "stats", manifest.num_samples) as count:
        found = measure(store, manifest, rule, count)
    readings = reading_lines(manifest)
    print(
        json.dumps(stats_dict(found) | {"readings": readings})
        if args.json
        else "\n".join([stats_table(found), *(f"{'reading':<20}{line}" for line in readings)])
    )
    if save_stats is not None:
        save_stats(args.png, args.url.rstrip("/").rpartition("/")[2] or args.url, found)
    return 0


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


def _show(args: argparse.Namespace) -> int:
    store, manifest = _open(args.url)
    with _counting(args.progress, "show", None) as count:
        shown = show(
            store,
            manifest,
            args.out,
            num_samples=args.num_samples,
            seed=args.seed,
            keys=args.keys,
            grep=args.grep,
            only_warned=args.warnings,
            on_progress=count,
        )
    print(f"{len(shown.keys)} samples: {shown.page} and {shown.sheet}")
    return 0


def _head(args: argparse.Namespace) -> int:
    _, source = _open(args.url)
    with _counting(args.progress, "head", min(args.num_samples, source.num_samples)) as count:
        manifest = head(
            args.url, args.out, args.num_samples, overwrite=args.overwrite, on_progress=count
        )
    return _print_made(args, {"": manifest})


def _merge(args: argparse.Namespace) -> int:
    total = sum(_open(url)[1].num_samples for url in args.urls)
    with _counting(args.progress, "merge", total) as count:
        manifest = merge(
            args.urls,
            args.out,
            prefixes=args.prefix,
            overwrite=args.overwrite,
            on_progress=count,
        )
    return _print_made(args, {"": manifest})


def _split(args: argparse.Namespace) -> int:
    _, source = _open(args.url)
    splits = Splits(tuple(args.split))
    limits = ShardLimits(args.samples_per_shard, args.max_shard_bytes)
    with _counting(args.progress, "split", source.num_samples) as count:
        manifests = split(
            args.url,
            args.out,
            splits,
            limits=limits,
            overwrite=args.overwrite,
            on_progress=count,
        )
    return _print_made(args, manifests)


def _print_made(args: argparse.Namespace, manifests: dict[str, Manifest]) -> int:
    made = {
        name: {
            "num_samples": manifest.num_samples,
            "num_shards": len(manifest.shards),
            "digest": manifest.digest,
        }
        for name, manifest in manifests.items()
    }
    if args.progress == "json":
        print(json.dumps({"out": args.out, "sets": made}))
        return 0
    for name, facts in made.items():
        folder = f"{args.out.rstrip('/')}/{name}" if name else args.out
        print(f"{facts['num_samples']} samples, {facts['num_shards']} shards in {folder}")
    return 0


def _open(url: str) -> tuple[Store, Manifest]:
    store = open_store(url)
    return store, Manifest.load(store)


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", required=True, metavar="URL", help="folder, s3://, gs:// or az:// to write to"
    )
    command.add_argument("--overwrite", action="store_true", help="replace what is in --out")


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers",
        type=int,
        default=num_usable_cores(),
        metavar="N",
        help="tars read at a time, each in a thread (default: cores, %(default)s)",
    )


@contextmanager
def _counting(
    mode: ProgressMode, phase: str, total: int | None
) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that is told of samples and bytes that were just done."""
    lock = threading.Lock()
    done = Progress(phase, total)

    with show_progress(mode) as tell:

        def count(num_samples: int, num_bytes: int) -> None:
            nonlocal done
            with lock:
                done = replace(
                    done,
                    num_records=done.num_records + num_samples,
                    num_image_bytes=done.num_image_bytes + num_bytes,
                )
                tell(done)

        yield count
