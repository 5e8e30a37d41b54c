"""How the gain of the shared prefix grows: forward and backward of one group, ours over trl's.

For each group size G, prompt length P and completion length C, a group's log-probabilities are
computed and differentiated twice: packed, and as trl's trainer calls the model, with the prompt in
front of every completion. Log-probabilities are compared. The vision tower is left out on both
sides (its features are given), so that tokens are all that differ: the arithmetic's prediction is
G (P + C) / (P + G C). Seconds are the process's own, in float32 on the CPU, the two ways in turn,
the lesser of the rounds.
"""

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.command_line import Commands, new_command
from benchmarks.loaders.figures import show
from benchmarks.step.growth_chart import growth_chart

_LOW = 0.7  # of the prediction: points below it are named


def add_command(commands: Commands) -> None:
    """Adds ``growth`` to the command line."""
    command = new_command(
        commands, "growth", "the gain of the shared prefix over group size and lengths", __doc__
    )
    add = command.add_argument
    for name, letter, numbers in (
        ("--num-generations", "G", [2, 4, 8, 16]),
        ("--num-prompt-tokens", "P", [256, 1024, 2700]),
        ("--num-tokens", "C", [16, 64, 256]),
    ):
        add(name, nargs="+", type=int, default=numbers, metavar=letter, help="(%(default)s)")
    add("--rounds", type=int, default=1, help="(%(default)s)")
    add("--hidden-size", type=int, default=256, help="of the policy, 4 layers (%(default)s)")
    add("--threads", type=int, default=1, help="of torch (%(default)s)")
    add("--attention", default="two_part", help="two_part or dense (%(default)s)")
    add("--chart", type=Path, help="file to draw the points in (SVG)")
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints a table, and draws it with ``--chart``."""
    rows = measure(args)
    if args.chart is not None:
        args.chart.write_text(growth_chart(rows))
    if args.json:
        print(json.dumps({"points": rows}))
        return
    table = {
        f"G={row['G']} P={row['P']} C={row['C']}": {
            "ours, ms": 1000 * row["ours"],
            "trl, ms": 1000 * row["trl"],
            "ratio": f"{row['ratio']:.2f}",
            "predicted": f"{row['predicted']:.2f}",
            "reached": f"{row['ratio'] / row['predicted']:.2f}"
            + (" <" if row["ratio"] < _LOW * row["predicted"] else ""),
        }
        for row in rows
    }
    show(args, "forward and backward of one group", {"CPU milliseconds": table})
    print(f"\nlargest difference of log-probabilities {max(row['error'] for row in rows):.1g}")


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per point: ``G``, ``P``, ``C``, seconds of each way, ``ratio``, ``predicted``."""
    import torch  # noqa: PLC0415 - seconds to import

    from benchmarks.step.growth_run import Contestants  # noqa: PLC0415
    from benchmarks.step.step_model import make_policy  # noqa: PLC0415
    from grpo_stream.train.setup.run_plan import use_cpu_only  # noqa: PLC0415

    use_cpu_only()  # else DeepSpeed warns on standard output

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(Path(folder) / "policy", args.hidden_size)
        contestants = Contestants(policy, args.attention)
    points = list(product(args.num_generations, args.num_prompt_tokens, args.num_tokens))
    rows = []
    for warm_up in (contestants.ours, contestants.trl):
        warm_up(*contestants.group(*map(min, zip(*points, strict=True))))
    for size, prompt, tokens in tqdm(points, disable=args.json):
        group = contestants.group(size, prompt, tokens)
        seconds: dict[str, list[float]] = {"ours": [], "trl": []}
        found = {}
        for _ in range(args.rounds):
            for who, way in (("ours", contestants.ours), ("trl", contestants.trl)):
                start = time.process_time()
                found[who] = way(*group)
                seconds[who].append(time.process_time() - start)
        best = {who: min(values) for who, values in seconds.items()}
        rows.append(
            {
                "G": size,
                "P": prompt,
                "C": tokens,
                **best,
                "ratio": best["trl"] / best["ours"],
                "predicted": size * (prompt + tokens) / (prompt + size * tokens),
                "error": float((found["ours"] - found["trl"]).abs().max()),
            }
        )
    return rows
