"""The commands on finished data sets: those that look at every shard are in ``pass_commands``."""

import argparse
import json
from pathlib import Path

from grpo_stream.errors import ConfigError
from grpo_stream.shards.linked_sets import open_set
from grpo_stream.shards.manifest import Manifest
from shard_builder.build.chunk_plan import ShardLimits, Splits
from shard_builder.counting import counting
from shard_builder.datasets.linking.join_by_manifest import join_by_manifest
from shard_builder.datasets.rewrite import head, merge, split
from shard_builder.datasets.show import show
from shard_builder.shared_flags import SET_HELP, add_shard_limits, add_split_flag


def add_show(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``show``."""
    add = command.add_argument
    add("url", help=SET_HELP)
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
    command.add_argument("url", help=SET_HELP)
    command.add_argument("--num-samples", type=int, required=True, metavar="N", help="at most")
    _add_out(command)
    command.set_defaults(run=_head)


def add_merge(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``merge``."""
    command.add_argument("urls", nargs="+", metavar="url", help=SET_HELP)
    command.add_argument(
        "--prefix",
        action="append",
        default=[],
        metavar="P",
        help="put before the keys of a set, to keep them unique; one for each set, in their order",
    )
    command.add_argument(
        "--by-manifest",
        action="store_true",
        help="copy nothing: write a manifest that names the shards where they lie",
    )
    _add_out(command)
    command.set_defaults(run=_merge)


def add_split(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``split``."""
    command.add_argument("url", help=SET_HELP)
    add_split_flag(command)
    add_shard_limits(command)
    _add_out(command)
    command.set_defaults(run=_split)


def _show(args: argparse.Namespace) -> int:
    store, manifest = open_set(args.url)
    with counting(args.progress, "show", None) as count:
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
    _, source = open_set(args.url)
    with counting(args.progress, "head", min(args.num_samples, source.num_samples)) as count:
        manifest = head(
            args.url, args.out, args.num_samples, overwrite=args.overwrite, on_progress=count
        )
    return _print_made(args, {"": manifest})


def _merge(args: argparse.Namespace) -> int:
    total = sum(open_set(url)[1].num_samples for url in args.urls)
    with counting(args.progress, "merge", total) as count:
        if args.by_manifest:
            if args.prefix:
                expected = "goes without --by-manifest: shards that stay as they are keep keys"
                raise ConfigError("--prefix", args.prefix, expected)
            manifest = join_by_manifest(
                args.urls, args.out, overwrite=args.overwrite, on_progress=count
            )
        else:
            manifest = merge(
                args.urls,
                args.out,
                prefixes=args.prefix,
                overwrite=args.overwrite,
                on_progress=count,
            )
    return _print_made(args, {"": manifest})


def _split(args: argparse.Namespace) -> int:
    _, source = open_set(args.url)
    splits = Splits(tuple(args.split))
    limits = ShardLimits(args.samples_per_shard, args.max_shard_bytes)
    with counting(args.progress, "split", source.num_samples) as count:
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


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", required=True, metavar="URL", help="folder, s3://, gs:// or az:// to write to"
    )
    command.add_argument("--overwrite", action="store_true", help="replace what is in --out")
