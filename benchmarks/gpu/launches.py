"""Counts what each phase of a step asks of the device, beside trl's layout: exact, not timed.

At the real depth of a model and small widths, on the CPU: operations that torch dispatches, those
of them that are no mere views, calls of attention, and values that the host waits for. A GPU that
waits for Python waits for these. trl's layout is transformers' own attention, loop and
padded rows. Families that are not packed are computed forked, and their tokens by ``generate``'s
loop unless compiled. A token is counted a second time with ``decode: compiled``: its graph is one
operation, and graph breaks and compilations are counted with it.
"""

import argparse
import json

from benchmarks.command_line import Commands, new_command

PHASES = ("prefill", "token", "scoring", "forward", "backward", "optimizer")
COLUMNS = ("operations", "kernels", "attention", "syncs")
FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_5", "gemma3")


def add_command(commands: Commands) -> None:
    """Adds ``launches`` to the command line."""
    command = new_command(commands, "launches", "operations of each phase of a step", __doc__)
    add = command.add_argument
    add("--family", choices=FAMILIES, default="qwen2_5_vl", help="(%(default)s)")
    add("--groups", type=int, default=1, help="of a micro-step (%(default)s)")
    add("--num-generations", type=int, default=8, metavar="G", help="(%(default)s)")
    add("--grid", type=int, nargs=2, default=(12, 20), help="patches, rows and columns (12 20)")
    add("--gradient-checkpointing", action="store_true", help="of both")
    add("--json", action="store_true", help="print the counts as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the counts."""
    from benchmarks.gpu.deep_policy import DEPTHS  # noqa: PLC0415 - torch, seconds to import
    from benchmarks.gpu.launch_counts import count_compiled, count_launches  # noqa: PLC0415

    found = {
        who: count_launches(
            args.family,
            DEPTHS[args.family],
            is_ours=who == "ours",
            num_groups=args.groups,
            num_generations=args.num_generations,
            grid=tuple(args.grid),
            gradient_checkpointing=args.gradient_checkpointing,
        )
        for who in ("ours", "trl's layout")
    }
    compiled = count_compiled(
        args.family,
        DEPTHS[args.family],
        num_groups=args.groups,
        num_generations=args.num_generations,
        grid=tuple(args.grid),
    )
    if args.json:
        print(json.dumps(found | {"ours, compiled": {"token": compiled}}))
        return
    print(f"{args.family}, {args.groups} groups of {args.num_generations}, eager")
    print(f"  {'':<22}" + "".join(f"{name:>12}" for name in COLUMNS))
    for phase in PHASES:
        for who, counts in found.items():
            cells = "".join(f"{counts[phase][name]:>12,}" for name in COLUMNS)
            print(f"  {phase:<10}{who:<12}{cells}")
        if phase == "token":
            cells = "".join(f"{compiled[name]:>12,}" for name in COLUMNS)
            rest = ", ".join(f"{compiled[name]} {name}" for name in ("breaks", "compilations"))
            print(f"  {phase:<10}{'compiled':<12}{cells}   {rest}")
