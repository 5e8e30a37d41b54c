"""One script for the first ten minutes on one GPU: which kernels, how exact, how fast.

Each block is a process of its own with a time limit, and what it found is in the JSON file at once,
with what was expected beside it. Without a GPU it runs at small size, which shows that the script
works and nothing else. Not in it: whole steps of the trainer (``python -m benchmarks step``), steps
whose gradient is not finite (``pytest tests/train/observe/test_bad_steps.py``), more than one GPU.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.command_line import Commands, new_command
from grpo_stream.storage.atomic_files import write_atomic

EXPECTED = {
    "environment": "cudnn_attention false; expandable_segments in allocator on a GPU",
    "kernels": "flash kernels for attention, none of cuDNN's, no convolution for the patches; "
    "log_sums true, else completions attend through a mask",
    "exactness": "packed_error at most 1.5 x plain_error: both in bfloat16, from plain float32",
    "tower": "batched at most half of stock in seconds; largest_difference below 0.05 in bfloat16",
    "micro_step": "4 groups in less than 4 x 1 group; checkpointing at most 1.4 x without it",
    "rollout": "seconds_a_token of ours near generate's; reading_weights is the floor of both",
    "zero": "with leaves below half of stage 3 in host time; stage 2 near plain",
}
"""By block, in the order in which they run: what should be found on a GPU."""


def add_command(commands: Commands) -> None:
    """Adds ``gpu_check`` to the command line."""
    command = new_command(commands, "gpu_check", "what a GPU makes of this code", __doc__)
    add = command.add_argument
    add("--out", type=Path, default=Path("gpu_check.json"), help="(%(default)s)")
    add("--blocks", nargs="+", choices=list(EXPECTED), default=list(EXPECTED), help="(all)")
    add("--model", default="auto", help="3B, deep or small; auto: 3B on a GPU, else small")
    add("--seconds", type=float, default=100.0, help="limit of a block (%(default)s)")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Runs the blocks; prints what each has found."""
    found: dict[str, Any] = {}
    for name in args.blocks:
        found[name] = {"expected": EXPECTED[name], **_run_block(name, args.model, args.seconds)}
        write_atomic(args.out, f"{json.dumps(found, indent=1)}\n".encode())
        print(f"{name}: {json.dumps(found[name], indent=1)}", flush=True)


def _run_block(name: str, model: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu.gpu_blocks", name, model]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {seconds:g} s"}
    if done.returncode:
        return {"error": done.stderr[-2000:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
