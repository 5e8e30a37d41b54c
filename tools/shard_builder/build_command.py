"""``shard-builder build`` and ``finish``: their flags."""

import argparse
from typing import get_args

from grpo_stream.image_encoding import parse_encoding
from grpo_stream.images import ResizeRule
from grpo_stream.records.formats.coco import DEFAULT_CATEGORY_PROMPT
from grpo_stream.records.formats.open_inputs import RuleFlags
from grpo_stream.records.formats.readers import FORMATS, format_help
from grpo_stream.records.formats.rules import BoxFormat, Coords, Rules, Several
from grpo_stream.records.stored_image import Check, PictureRules
from shard_builder.build.build import BuildSettings, build
from shard_builder.build.chunk_plan import ShardLimits, Splits
from shard_builder.build.progress import num_usable_cores, show_progress
from shard_builder.build_summary import print_part, print_result
from shard_builder.parts.finish_parts import finish
from shard_builder.parts.plan_request import Part
from shard_builder.parts.run_part import build_part
from shard_builder.shared_flags import add_executor, add_shard_limits, add_split_flag


def add_build(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``build``."""
    add = command.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, glob or URL, also .gz and .zst")
    add("--images-root", required=True, metavar="DIR", help="folder or URL of the images")
    add("--out", required=True, metavar="URL", help="folder, s3://, gs:// or az:// to write to")
    _add_records(command.add_argument_group("records"))
    _add_images(command.add_argument_group("images"))
    _add_set(command.add_argument_group("data set"))
    _add_run(command.add_argument_group("run"))
    command.epilog = f"{format_help()}\n\n{command.epilog}"
    command.set_defaults(run=_build)


def _add_records(group: "argparse._ArgumentGroup") -> None:
    add, rules = group.add_argument, Rules()
    add(
        "--format",
        default="auto",
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} (see below)",
    )
    for name, field in (("image", "image path"), ("prompt", "prompt"), ("solution", "box")):
        default = getattr(rules, f"{name}_key")
        add(f"--{name}-key", metavar="FIELD", help=f"field of the {field} (default: {default})")
    add(
        "--box-format",
        choices=get_args(BoxFormat),
        help="what the solution's numbers are; two numbers are always a point (default: what the "
        "format says, else what all records fit)",
    )
    add(
        "--coords",
        choices=get_args(Coords),
        help="pixels of the upright image, 0-1, or 0-1000 over its sides (default: what the "
        "format says, else what all records fit)",
    )
    add(
        "--accept-reading",
        metavar="NAME",
        help="as in xywh-pixels: taken where the records fit several readings",
    )
    add(
        "--several",
        choices=get_args(Several),
        help="records with several images or boxes, or with none (image: [] or null); a reward "
        f"takes any of several boxes (default: {rules.several})",
    )
    add(
        "--category-prompt",
        default=DEFAULT_CATEGORY_PROMPT,
        metavar="TEXT",
        help="what COCO's categories are asked for with (%(default)s)",
    )
    add(
        "--where",
        action="append",
        type=_field_value,
        default=[],
        metavar="FIELD=VALUE",
        help="only records with this value, as in split=train; may be repeated",
    )


def _add_images(group: "argparse._ArgumentGroup") -> None:
    add, resize = group.add_argument, ResizeRule()
    add(
        "--check",
        choices=get_args(Check),
        default="decode",
        help="decode every image once, or look at header, limits and end only (%(default)s)",
    )
    for name, what in (
        ("max_pixels", "resize to the model's size: at most N pixels, boxes follow"),
        ("min_pixels", "resize: at least N pixels"),
        ("multiple", "resize: sides are multiples of N"),
    ):
        flag = "--patch-multiple" if name == "multiple" else f"--{name.replace('_', '-')}"
        default = getattr(resize, name)
        help_text = f"{what} (default if another of the three is given: {default})"
        add(flag, dest=name, type=int, metavar="N", help=help_text)
    add(
        "--reencode",
        default="keep",
        metavar="HOW",
        help="keep (the file's own bytes where possible), jpeg:90, webp:80 or png (%(default)s)",
    )


def _add_set(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add_shard_limits(group)
    add_split_flag(group)
    add(
        "--group-by",
        choices=("none", "image"),
        default="none",
        help="image: an image's records become neighbours; supervised fine-tuning then computes "
        "it once for all of them (%(default)s)",
    )
    add("--shuffle-seed", type=int, metavar="S", help="shuffle the records")
    add("--overwrite", action="store_true", help="replace the data set in --out")


def _add_run(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    num_cores = num_usable_cores()
    add(
        "--workers",
        type=int,
        default=num_cores,
        metavar="N",
        help="processes; the result is the same for any number (default: cores, %(default)s)",
    )
    add(
        "--on-error",
        choices=("reject", "fail"),
        default="reject",
        help="leave bad records out and list them, or stop at the first (%(default)s)",
    )
    add(
        "--max-reject-share",
        type=float,
        default=0.5,
        metavar="X",
        help="end with an error when more than this share is rejected (%(default)s)",
    )
    add("--max-rejects", type=int, metavar="N", help="stop when more than N records are rejected")
    add_executor(group, "processes of this machine")
    add(
        "--part",
        metavar="I/N",
        help="build the I-th of N parts, on machines that share --out, in any order; the last one "
        "finishes; plan/N only makes the plan",
    )
    add("--dry-run", action="store_true", help="judge everything, write nothing")


def _build(args: argparse.Namespace) -> int:
    resize = {
        name: value
        for name in ("max_pixels", "min_pixels", "multiple")
        if (value := getattr(args, name)) is not None
    }
    settings = BuildSettings(
        inputs=tuple(args.inputs),
        images_root=args.images_root,
        out=args.out,
        input_format=args.format,
        rules=Rules(several=args.several or Rules().several),
        flags=RuleFlags(
            image_key=args.image_key,
            prompt_key=args.prompt_key,
            solution_key=args.solution_key,
            box_format=args.box_format,
            coords=args.coords,
        ),
        category_prompt=args.category_prompt,
        where=tuple(args.where),
        split=Splits(tuple(args.split)) if args.split else None,
        pictures=PictureRules(
            check=args.check,
            resize=ResizeRule(**resize) if resize else None,
            encoding=parse_encoding(args.reencode),
        ),
        limits=ShardLimits(args.samples_per_shard, args.max_shard_bytes),
        by_image=args.group_by == "image",
        shuffle_seed=args.shuffle_seed,
        max_reject_share=args.max_reject_share,
        accept_reading=args.accept_reading,
        given_flags=_given(args),
        max_rejects=0 if args.on_error == "fail" else args.max_rejects,
        num_workers=args.workers,
        executor=args.executor,
        ray_address=args.ray_address,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
    )
    which = None if args.part is None else Part.parse(args.part)
    with show_progress(args.progress) as tell:
        if which is not None:
            part = build_part(settings, which, tell)
        else:
            result = build(settings, tell)
    if which is not None:
        print_part(part, args.progress, settings.out)
    else:
        print_result(result, args.progress, settings.out, is_dry_run=settings.dry_run)
    return 0


def add_finish(command: argparse.ArgumentParser) -> None:
    """Adds the flags of ``finish``."""
    command.add_argument(
        "--out", required=True, metavar="URL", help="where the parts were built, as they were told"
    )
    command.set_defaults(run=_finish)


def _finish(args: argparse.Namespace) -> int:
    with show_progress(args.progress) as tell:
        result = finish(args.out, tell)
    print_result(result, args.progress, args.out)
    return 0


def _given(args: argparse.Namespace) -> tuple[str, ...]:
    """The flags among those that a hint may ask for that were given."""
    names = ("image_key", "prompt_key", "solution_key", "box_format", "coords", "several")
    given = [name for name in names if getattr(args, name) is not None]
    if args.format != "auto":
        given.append("format")
    return tuple(f"--{name.replace('_', '-')}" for name in given)


def _field_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: write FIELD=VALUE, as in split=train")
    return name, value
