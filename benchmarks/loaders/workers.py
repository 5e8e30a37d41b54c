"""Decoding in threads against processes, with a training step's work in the main thread.

A step is a loop of matrix products on the CPU, as long as ``--step-ms`` when nothing runs beside
it. Small matrices (``--matrix-side``) make a step that is mostly Python, as one that starts many
kernels on a device is; large ones leave the interpreter alone.
"""

import argparse
from dataclasses import replace

from tqdm import tqdm

from benchmarks.command_line import Commands, new_command
from benchmarks.loaders.figures import Table, median, ratio, show
from benchmarks.loaders.job import Job, Measured, run_apart
from benchmarks.loaders.loader import add_data, prepared
from benchmarks.peers.peers import OURS

_EPILOG = """\
per second       samples delivered and "trained" on; at most batch size / step
per cpu second   samples for each second of CPU, the steps' included
step slowdown    mean time of a step, relative to one alone in the same process
"""


def add_command(commands: Commands) -> None:
    """Adds ``workers`` to the command line."""
    command = new_command(
        commands, "workers", "threads against processes beside a training step", __doc__, _EPILOG
    )
    add_data(command)
    add = command.add_argument
    add("--step-ms", type=float, nargs="+", default=[30, 100], help="(30 100)")
    add("--matrix-side", type=int, nargs="+", default=[32, 256], help="(32 256)")
    add("--num-batches", type=int, default=40, help="of each run (%(default)s)")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints rates and slowdowns."""
    steps = [(ms, side) for ms in args.step_ms for side in args.matrix_side]
    measured: dict[tuple[float, int], dict[str, list[Measured]]] = {
        step: {name: [] for name in OURS} for step in steps
    }
    runs = [(step, name) for _ in range(args.rounds) for step in steps for name in OURS]
    with prepared(args, []) as job:
        for (ms, side), name in tqdm(runs, disable=args.json):
            own = _with_step(job, args.num_batches, ms, side)
            measured[ms, side][name].append(run_apart(replace(own, contestant=name)))
    tables: dict[str, Table] = {
        f"step {ms:g} ms, matrices {side}x{side}": {
            name: {
                "per_second": median([one.per_second for one in found]),
                "per_cpu_second": median([one.per_cpu_second for one in found]),
                "step_slowdown": median([one.step_slowdown for one in found]),
                "per_second_to_threads": ratio(
                    [one.per_second for one in found],
                    [one.per_second for one in by_name[OURS[0]]],
                ),
            }
            for name, found in by_name.items()
        }
        for (ms, side), by_name in measured.items()
    }
    show(args, f"{args.workers} workers: medians of {args.rounds} rounds", tables)


def _with_step(job: Job, num_batches: int, step_ms: float, side: int) -> Job:
    return replace(
        job,
        step_seconds=step_ms / 1000,
        step_side=side,
        num_warm_up=4 * job.batch_size,
        num_samples=num_batches * job.batch_size,
    )
