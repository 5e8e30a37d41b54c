"""Times a training step of this trainer beside trl's own, on the same weights and prompts.

Both run in turn, round by round, each in a process of its own, in float32 on the CPU with learning
rate 0. The first step of each takes the same given completions, and its log-probabilities, loss and
gradient are compared: the work is the same. A step is one group: input work, rollout, scoring under
the reference model (``--beta``), loss, backward, optimizer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.build.build import SCREENSHOTS
from benchmarks.command_line import Commands, new_command
from grpo_stream.families import FAMILIES

_PARTS = ("step", "step_cpu", "input", "rollout", "score", "update")
_MiB = 2**20


def add_command(commands: Commands) -> None:
    """Adds ``step`` to the command line."""
    command = new_command(commands, "step", "a training step beside trl's own trainer", __doc__)
    add = command.add_argument
    add("--num-generations", type=int, default=8, metavar="G", help="(%(default)s)")
    add("--num-tokens", type=int, default=32, metavar="C", help="of a completion (%(default)s)")
    add(
        "--max-pixels",
        type=int,
        default=28 * 28 * 1280,
        help="of the image; 1280x720 screenshots then take some 1,200 tokens (%(default)s)",
    )
    add(
        "--image-width",
        type=int,
        choices=(1280, 1440, 1920),
        default=1280,
        help="of the screenshots; families with larger patches need larger ones for as many tokens"
        " (%(default)s)",
    )
    add("--num-steps", type=int, default=2, help="timed, each round (%(default)s)")
    add("--rounds", type=int, default=2, help="(%(default)s)")
    names = [name for name, row in FAMILIES.items() if row.processor]
    add("--family", choices=names, default="qwen2_5_vl", help="of the policy (%(default)s)")
    add("--way", default="on", help="shared_prefix: on, packed or forked (%(default)s)")
    add(
        "--gradient-checkpointing",
        action="store_true",
        help="of both; layers are computed again in backward",
    )
    add("--beta", type=float, default=0.04, help="of the KL term; 0: no scoring (%(default)s)")
    add("--threads", type=int, default=1, help="of torch (%(default)s)")
    add("--hidden-size", type=int, default=256, help="of the policy, 4 layers (%(default)s)")
    add("--deep", action="store_true", help="layers of the real model: of Qwen-VL's families")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: bfloat16 (%(default)s)")
    add("--decode", default="auto", help="of ours: auto, eager or compiled (%(default)s)")
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints seconds, ratios and differences."""
    figures = measure(args)
    if args.json:
        print(json.dumps(figures))
        return
    print(f"seconds of a step (median of {args.rounds} x {args.num_steps})")
    print(f"  {'':<10}{'ours':>10}{'trl':>10}{'ratio':>10}")
    for part in _PARTS:
        seconds = figures["seconds"]
        ratio = figures[f"{part}_ratio"]
        shown = "" if ratio is None else f"{ratio:.2f}"
        print(f"  {part:<10}{seconds['ours'][part]:>10.3f}{seconds['trl'][part]:>10.3f}{shown:>10}")
    peaks = figures["peak_megabytes"]
    print(f"  {'peak MB':<10}{peaks['ours']:>10.0f}{peaks['trl']:>10.0f}", end="")
    print(f"{figures['peak_memory_ratio']:>10.2f}")
    for name in ("max_abs_logprob_diff", "rel_grad_diff", "loss_diff", "predicted_ratio"):
        print(f"  {name:<24}{figures[name]:.3g}")
    print(f"  groups are {figures['way']}")
    print(f"  {figures['num_prompt_tokens']} prompt tokens, {figures['num_parameters']:,} weights")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures; ratios are trl's seconds over ours, memory is ours over trl's."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        job = make_job(args, folder)
        for number in tqdm(range(args.rounds), "rounds", disable=args.json):
            order = ("ours", "trl") if number % 2 == 0 else ("trl", "ours")
            for who in order:
                found[who].append(_run_one({**job, "who": who}, folder))
        compared = _compare(folder)
    seconds = {who: _medians(runs) for who, runs in found.items()}
    peaks = {
        who: statistics.median(run["peak_bytes"] for run in runs) for who, runs in found.items()
    }
    prompt = found["ours"][0]["num_prompt_tokens"]
    group, tokens = args.num_generations, args.num_tokens
    return {
        **{f"{part}_ratio": _ratio(seconds, part) for part in _PARTS},
        "peak_memory_ratio": peaks["ours"] / peaks["trl"],
        **compared,
        "predicted_ratio": group * (prompt + tokens) / (prompt + group * tokens),
        "seconds": seconds,
        "peak_megabytes": {who: peak / _MiB for who, peak in peaks.items()},
        "num_prompt_tokens": prompt,
        "num_parameters": found["ours"][0]["num_parameters"],
        "way": found["ours"][0]["way"],
        "settings": {k: v for k, v in vars(args).items() if k not in ("run", "json")},
    }


def make_job(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a contestant is told; ``who`` it is comes with it.

    Args:
        args: Of the command.
        folder: Where policy and records are written.
    """
    from benchmarks.step.step_model import make_policy  # noqa: PLC0415 - torch, seconds to import

    policy = make_policy(folder / "policy", args.hidden_size, args.family, is_deep=args.deep)
    return {
        "model": str(policy),
        "way": args.way,
        "device": args.device,
        "decode": args.decode,
        "gradient_checkpointing": args.gradient_checkpointing,
        "records": str(_records(folder, args.image_width)),
        "images_root": str(SCREENSHOTS),
        "out": str(folder / "out"),
        "max_pixels": args.max_pixels,
        "num_generations": args.num_generations,
        "num_tokens": args.num_tokens,
        "num_steps": args.num_steps,
        "num_threads": args.threads,
        "beta": args.beta,
    }


def _records(folder: Path, width: int) -> Path:
    """The records of the committed screenshots that are so many pixels wide."""
    records = json.loads((SCREENSHOTS / "records.json").read_text())
    path = folder / "records.json"
    path.write_text(json.dumps([one for one in records if one["width"] == width]))
    return path


def _run_one(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    job["found"] = str(folder / f"{job['who']}.npz")
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["num_threads"]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.step.step_run", str(path)]
    done = subprocess.run(
        command,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{job['who']} failed:\n{done.stderr[-4000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _compare(folder: Path) -> dict[str, float]:
    ours, theirs = (np.load(folder / f"{who}.npz") for who in ("ours", "trl"))
    logps = _by_tokens(ours) - _by_tokens(theirs)
    grad, their_grad = ours["grad"], theirs["grad"]
    return {
        "max_abs_logprob_diff": float(np.abs(logps).max()),
        "rel_grad_diff": float(np.linalg.norm(grad - their_grad) / np.linalg.norm(their_grad)),
        "loss_diff": float(abs(ours["loss"] - theirs["loss"])),
    }


def _by_tokens(found: Any) -> NDArray[np.float32]:
    """Log-probabilities with the rows in the order of their tokens: trl shuffles them."""
    order = np.lexsort(found["tokens"].T[::-1])
    logps: NDArray[np.float32] = found["logps"][order]
    return logps


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    times = {
        "step": [second for run in runs for second in run["seconds"]],
        "step_cpu": [second for run in runs for second in run["cpu_seconds"]],
    }
    for part in _PARTS[2:]:
        times[part] = [second for run in runs for second in run["phases"][part]]
    return {part: statistics.median(values) for part, values in times.items()}


def _ratio(seconds: dict[str, dict[str, float]], part: str) -> float | None:
    ours, theirs = seconds["ours"][part], seconds["trl"][part]
    return theirs / ours if min(ours, theirs) > 1e-6 else None
