r"""Evaluates a policy on a held-out set: greedy answers, figures with intervals, a report.

    python launch/evaluate.py --model out/checkpoint-500 --shards s3://bucket/test/ --report report/
    python launch/evaluate.py --model out/checkpoint-500 --json screenspot_web.json \
        --images-root images/ --format screenspot --report report/ --num-processes 8

Runs on one process, or on as many as a launcher (deepspeed, torchrun, accelerate) or
--num-processes starts, each with a whole copy of the policy. Writes results.json, answers.jsonl and
index.html into the folder of --report. Parser, frames, resize and prompts are those of training.
"""

import os
import signal
import sys
from collections.abc import Sequence

from grpo_stream.errors import GrpoStreamError
from grpo_stream.report.evaluation_tables import comparison_table, figure_table
from grpo_stream.storage.atomic_files import NO_ROOM, no_room_line
from grpo_stream.stream.world import find_world
from grpo_stream.train.cluster.early_end import end_process
from grpo_stream.train.evaluate.evaluation_arguments import EvaluateArguments
from grpo_stream.train.evaluate.evaluation_plan import plan_evaluation
from grpo_stream.train.evaluate.evaluation_run import run_evaluation
from grpo_stream.train.models.cuda_settings import choose_attention_kernels, prepare_cuda
from grpo_stream.train.setup.settings_parser import SettingsParser


def main(argv: Sequence[str]) -> int:
    """Runs the script; returns the process's exit code.

    0 done, 1 a full disk, 2 settings that cannot work.
    """
    prepare_cuda()
    try:
        (args,) = SettingsParser(EvaluateArguments, description=__doc__).parse(argv)
        plan = plan_evaluation(args, find_world())
        if args.num_processes > 1:
            start_ranks(argv, args.num_processes)
        kernels = choose_attention_kernels(cudnn_attention=args.cudnn_attention)
        if plan.world.rank == 0:
            notes = [f"note: {note}" for note in plan.notes]
            for line in [*plan.readings, *notes, f"cuDNN attention: {kernels}"]:
                print(line)
        done = run_evaluation(plan)
    except GrpoStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {no_room_line(error)}; older results are as they were", file=sys.stderr)
        return 1
    if done is not None:
        results, page = done
        print(f"\n{figure_table(results)}\n")
        for comparison in results["comparisons"]:
            print(f"compared with {comparison['model']}:\n{comparison_table(comparison)}\n")
        print(f"report: {page}")
    return 0


def start_ranks(argv: Sequence[str], num_processes: int) -> None:
    """Becomes torch's launcher of so many ranks on this machine; does not return."""
    flags = {"--num_processes", "--num-processes"}
    kept = [
        word
        for word, before in zip(argv, ["", *argv], strict=False)
        if word.partition("=")[0] not in flags and before not in flags
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    words = [sys.executable, *launcher, os.path.abspath(__file__), *kept]  # noqa: PTH100
    os.execv(sys.executable, words)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    # Ctrl-C too: torch, waiting for another rank, lets no handler of Python's run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_process(main(sys.argv[1:]))
