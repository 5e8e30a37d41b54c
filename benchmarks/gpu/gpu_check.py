"""One script for the first ten minutes on one GPU: which kernels, how exact, how fast.

Each block is a process of its own with a time limit, and what it found is in the JSON file at once,
with what was expected beside it and, as ``red``, what is not so. What fails, or was not reached in
time, leaves the figures before it and the blocks behind it. Without a GPU it runs at small
size, which shows that the script works; times are then no GPU's. Not in it: more than one GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.command_line import Commands, new_command
from benchmarks.gpu.expectations import BLOCKS, FIGURE, red
from grpo_stream.storage.atomic_files import write_atomic


def add_command(commands: Commands) -> None:
    """Adds ``gpu_check`` to the command line."""
    command = new_command(commands, "gpu_check", "what a GPU makes of this code", __doc__)
    add = command.add_argument
    add("--out", type=Path, default=Path("gpu_check.json"), help="(%(default)s)")
    add("--blocks", nargs="+", choices=list(BLOCKS), default=list(BLOCKS), help="(all)")
    add("--model", default="auto", help="3B, deep or small; auto: 3B on a GPU, else small")
    add("--seconds", type=float, help="share of each block; by itself, all end in ten minutes")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Runs the blocks; prints what each has found, what was expected of it, and what is red."""
    found: dict[str, Any] = {}
    start, budget = time.monotonic(), 0.0
    for name in args.blocks:
        budget += args.seconds or BLOCKS[name].seconds
        # What the blocks before it have left is there for it, too.
        figures = _run_block(name, args.model, start + budget - time.monotonic())
        expected = [one.words for one in BLOCKS[name].expected]
        found[name] = {"expected": expected, "red": red(name, figures), **figures}
        write_atomic(args.out, f"{json.dumps(found, indent=1)}\n".encode())
        print(_block_text(name, figures, expected, found[name]["red"]), flush=True)
    for name, one in found.items():
        for words in one["red"]:
            print(f"red: {name}: {words}")


def _block_text(name: str, figures: dict[str, Any], expected: list[str], reds: list[str]) -> str:
    lines = [f"  {key:<28}{json.dumps(figure)}" for key, figure in figures.items()]
    marks = [f"  {'red' if words in reds else 'ok':<4}expected: {words}" for words in expected]
    return "\n".join([name, *lines, *marks])


def _run_block(name: str, model: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu.gpu_blocks", name, model]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # One GPU: transformers would take all that it sees.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    pipes["env"] = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    # A session of its own: some blocks start processes, which must not outlive the limit.
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    fault = {}
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        fault = {"error": f"took longer than {seconds:.3g} s"}
    else:
        if process.returncode:
            fault = {"error": errors[-2000:] or f"exit code {process.returncode}"}
    return figures_of(output) | fault


def figures_of(output: str) -> dict[str, Any]:
    """Figures that a block has printed, whatever else is between; not one that was cut off."""
    found: dict[str, Any] = {}
    for line in output.splitlines(keepends=True):
        if line.startswith(FIGURE) and line.endswith("\n"):
            figure = line.removeprefix(FIGURE)
            found |= json.loads(figure)
    return found
