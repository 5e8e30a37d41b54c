"""The command line: ``shard-builder build | verify | stats``."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.store import open_store
from tools.shard_builder.build import BuildResult, BuildSettings, build
from tools.shard_builder.judge import BoxFormat, Coords, Rules
from tools.shard_builder.ledger import REJECTS_NAME
from tools.shard_builder.pack import ShardLimits
from tools.shard_builder.stats import stats_table
from tools.shard_builder.verify import verify

_EXIT_CODES = "exit codes: 0 fine · 1 the data is bad, or cannot be read · 2 wrong usage"
_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Words after the program's name; None takes them from the command line.

    Returns:
        0 fine, 1 the data is bad or cannot be read, 2 wrong usage.
    """
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except ConfigError as error:
        print(f"shard-builder: {error}", file=sys.stderr)
        return 2
    except (GrpoStreamError, OSError) as error:
        print(f"shard-builder: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("shard-builder: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shard-builder",
        description="Raw JSON records and images to WebDataset shards with a manifest.",
        epilog=_EXIT_CODES,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_build(commands)
    for name, run, what in (
        ("verify", _verify, "re-read everything and check it; names the first bad key"),
        ("stats", _stats, "counts, sizes and box areas of a data set"),
    ):
        command = commands.add_parser(name, help=what, description=what, epilog=_EXIT_CODES)
        command.add_argument("url", help="folder, s3://, gs://, az:// or https:// of a data set")
        command.add_argument("--quiet", action="store_true", help="no progress bar")
        command.set_defaults(run=run)
    return parser


def _add_build(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "build",
        help="make shards of a JSON array or JSON Lines",
        description="Judges every record, decodes every image once, writes shards, their indexes, "
        "rejects.jsonl and warnings.jsonl, and the manifest last.",
        epilog=_EXIT_CODES,
    )
    add = command.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="JSON array or JSON Lines")
    add("--images-root", type=Path, required=True, help="folder that image paths start from")
    add("--out", required=True, help="folder of the data set")
    rules, limits = Rules(), ShardLimits()
    add("--image-key", default=rules.image_key, help="field of the image path (%(default)s)")
    add("--prompt-key", default=rules.prompt_key, help="field of the prompt (%(default)s)")
    add("--solution-key", default=rules.solution_key, help="field of the box (%(default)s)")
    add(
        "--box-format",
        choices=get_args(BoxFormat),
        default=rules.box_format,
        help="what the solution's numbers are; two numbers are always a point (%(default)s)",
    )
    add(
        "--coords",
        choices=get_args(Coords),
        default=rules.coords,
        help="pixels of the upright image, 0-1, or 0-1000 over its sides (%(default)s)",
    )
    add(
        "--where",
        action="append",
        type=_field_value,
        default=[],
        metavar="FIELD=VALUE",
        help="only records with this value, as in split=train; may be repeated",
    )
    add(
        "--samples-per-shard",
        type=int,
        default=limits.max_samples,
        metavar="N",
        help="a shard is full at N samples (%(default)s)",
    )
    add(
        "--max-shard-bytes",
        type=_num_bytes,
        default=limits.max_bytes,
        metavar="SIZE",
        help="or before it passes SIZE, as in 256MiB (the default)",
    )
    add(
        "--on-error",
        choices=("reject", "fail"),
        default="reject",
        help="leave bad records out and list them, or stop at the first (%(default)s)",
    )
    add("--max-rejects", type=int, metavar="N", help="stop when more than N records are rejected")
    add("--shuffle-seed", type=int, metavar="S", help="shuffle the records (all held in memory)")
    add("--overwrite", action="store_true", help="replace the data set in --out")
    add("--dry-run", action="store_true", help="judge everything, write nothing")
    add("--quiet", action="store_true", help="no progress bar and no summary")
    command.set_defaults(run=_build)


def _build(args: argparse.Namespace) -> int:
    if re.match(r"[a-z0-9]+://", args.out):
        expected = "must be a local folder: build there, then copy it to the bucket"
        raise ConfigError("--out", args.out, expected)
    if args.max_rejects is not None and args.max_rejects < 0:
        raise ConfigError("--max-rejects", args.max_rejects, "must be 0 or more, for example 100")
    settings = BuildSettings(
        inputs=tuple(args.inputs),
        images_root=args.images_root,
        out=Path(args.out),
        rules=Rules(
            args.image_key, args.prompt_key, args.solution_key, args.box_format, args.coords
        ),
        where=tuple(args.where),
        limits=ShardLimits(args.samples_per_shard, args.max_shard_bytes),
        shuffle_seed=args.shuffle_seed,
        max_rejects=0 if args.on_error == "fail" else args.max_rejects,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        quiet=args.quiet,
    )
    result = build(settings)
    if not args.quiet:
        print("\n".join(_summary(result, settings)))
    return 0


def _summary(result: BuildResult, settings: BuildSettings) -> list[str]:
    lines = [f"{result.num_samples} samples of {result.num_records} records"]
    for what, counts in (("rejected", result.rejects), ("warnings", result.warnings)):
        if counts:
            listed = ", ".join(f"{cause} {count}" for cause, count in counts.items())
            lines.append(f"{what}: {sum(counts.values())} ({listed})")
    lines += [f"  {line}" for line in result.first_rejects]
    if result.manifest is None:
        lines.append("dry run: nothing was written")
    else:
        num_mib = result.manifest.totals["num_bytes"] / 2**20
        written = f"{len(result.manifest.shards)} shards, {num_mib:.1f} MiB in {settings.out}"
        lines.append(written + (f"; see {REJECTS_NAME} there" if result.rejects else ""))
    return lines


def _verify(args: argparse.Namespace) -> int:
    store = open_store(args.url)
    manifest = Manifest.load(store)
    total = manifest.num_samples
    with tqdm(desc="verify", total=total, unit=" samples", disable=args.quiet) as bar:
        verify(store, manifest, on_progress=lambda num_samples, _: bar.update(num_samples))
    print(f"sound: {total} samples in {len(manifest.shards)} shards, {manifest.digest[:16]}")
    return 0


def _stats(args: argparse.Namespace) -> int:
    store = open_store(args.url)
    print(stats_table(store, Manifest.load(store), quiet=args.quiet))
    return 0


def _field_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: write FIELD=VALUE, as in split=train")
    return name, value


def _num_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r}: write a size as 268435456 or 256MiB")
    return int(match[1]) * _UNITS[match[2].upper()]
