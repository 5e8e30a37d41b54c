"""Checks, without training, that all ranks can do a run together.

    deepspeed --hostfile hostfile launch/preflight.py --config launch/configs/qwen2_5_vl_7b.yaml

Takes the flags of launch/train.py, which does the same at its start (--skip_preflight true leaves
it out), and ends with 0, or with 2 and one line that names node, what, found and needed.
"""

import signal
import sys

from grpo_stream.errors import GrpoStreamError
from grpo_stream.stream.world import World
from grpo_stream.train.cluster.early_end import end_process
from grpo_stream.train.cluster.preflight import run_preflight
from grpo_stream.train.cluster.preflight_needs import run_checks
from grpo_stream.train.cluster.preflight_report import PreflightError
from grpo_stream.train.cluster.process_group import (
    joining_ranks,
    leave_process_group,
    start_process_group,
)
from grpo_stream.train.setup.run_plan import make_settings, read_flags, use_cpu_only


def main(argv: list[str]) -> int:
    """Runs the script; returns the process's exit code."""
    use_cpu = use_cpu_only()
    try:
        parser, flags = read_flags(argv, use_cpu=use_cpu, description=__doc__)
        start_process_group(use_cpu=use_cpu)
        with joining_ranks():
            settings = make_settings(parser, flags)
        run_preflight(run_checks(settings), say=print)
        leave_process_group()
    except GrpoStreamError as error:
        if not isinstance(error, PreflightError) or World.from_env().rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # Ctrl-C too: torch, waiting for another rank, lets no handler of Python's run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_process(main(sys.argv[1:]))
