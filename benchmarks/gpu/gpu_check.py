"""One script for the first ten minutes on one GPU: which kernels, how exact, how fast.

Each block is a process of its own with a time limit, and what it found is in the JSON file at once,
with what was expected beside it and, as ``red``, what is not so. Without a GPU it runs at small
size, which shows that the script works; times are then no GPU's. Not in it: more than one GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.command_line import Commands, new_command
from benchmarks.gpu.expectations import BLOCKS, red
from grpo_stream.storage.atomic_files import write_atomic


def add_command(commands: Commands) -> None:
    """Adds ``gpu_check`` to the command line."""
    command = new_command(commands, "gpu_check", "what a GPU makes of this code", __doc__)
    add = command.add_argument
    add("--out", type=Path, default=Path("gpu_check.json"), help="(%(default)s)")
    add("--blocks", nargs="+", choices=list(BLOCKS), default=list(BLOCKS), help="(all)")
    add("--model", default="auto", help="3B, deep or small; auto: 3B on a GPU, else small")
    add("--seconds", type=float, help="limit of each block; by itself, all end in ten minutes")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Runs the blocks; prints what each has found."""
    found: dict[str, Any] = {}
    for name in args.blocks:
        block = BLOCKS[name]
        figures = _run_block(name, args.model, args.seconds or block.seconds)
        found[name] = {
            "expected": [one.words for one in block.expected],
            "red": red(name, figures),
            **figures,
        }
        write_atomic(args.out, f"{json.dumps(found, indent=1)}\n".encode())
        print(f"{name}: {json.dumps(found[name], indent=1)}", flush=True)
    for name, one in found.items():
        for words in one["red"]:
            print(f"red: {name}: {words}")


def _run_block(name: str, model: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu.gpu_blocks", name, model]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A session of its own: some blocks start processes, which must not outlive the limit.
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"error": f"took longer than {seconds:g} s"}
    if process.returncode:
        return {"error": errors[-2000:]}
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found
