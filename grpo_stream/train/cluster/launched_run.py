"""A launch script's run: from its first signal handler to its exit code."""

import sys
import traceback
from collections.abc import Callable
from typing import Any

from grpo_stream.errors import GrpoStreamError
from grpo_stream.stream.world import World
from grpo_stream.train.cluster.early_end import EndedEarly, leave_now
from grpo_stream.train.cluster.exit_with_launcher import end_with_launcher
from grpo_stream.train.cluster.preflight import run_preflight
from grpo_stream.train.cluster.preflight_needs import run_checks
from grpo_stream.train.cluster.preflight_report import PreflightError
from grpo_stream.train.cluster.process_group import (
    ignore_launcher,
    is_lost_rank,
    joining_ranks,
    leave_process_group,
    start_process_group,
)
from grpo_stream.train.cluster.stop_on_request import EXIT_STOPPED, StopOnRequest
from grpo_stream.train.cluster.waiting import waiting_for
from grpo_stream.train.setup.run_plan import RunPlan, use_cpu_only

_LOST_RANK = (
    "error: another rank has gone, or did not answer within ddp_timeout; its own log says why. "
    "The same command with --resume_from_checkpoint auto resumes from the last checkpoint."
)


def run_script(
    argv: list[str],
    description: str | None,
    *,
    read_flags: Callable[..., tuple[Any, Any]],
    make_settings: Callable[..., Any],
    plan_run: Callable[[Any], RunPlan],
    train: Callable[[Any, RunPlan, StopOnRequest], object],
) -> int:
    """Reads settings, checks that they can work, and trains. For the main thread.

    Args:
        argv: Flags.
        description: Of the script, for ``--help``.
        read_flags: Gives a parser and its flags.
        make_settings: From both to settings; ranks have been joined, or are not to be.
        plan_run: Opens the data and says what will be done.
        train: Does it, and asks the last of its arguments whether to stop.

    Returns:
        0 done, 1 another rank was lost, 2 settings or data that cannot work, 75 stopped on demand.
    """
    stop = StopOnRequest()
    stop.listen()
    end_with_launcher(stop.is_asked)
    try:
        use_cpu = use_cpu_only()
        parser, flags = read_flags(argv, use_cpu=use_cpu, description=description)
        is_alone = flags.dry_run and World.from_env().world_size == 1
        if is_alone:
            ignore_launcher()
        else:
            start_process_group(use_cpu=use_cpu)
        with joining_ranks():
            settings = make_settings(parser, flags, is_alone=is_alone)
        _plan_and_train(settings, plan_run, lambda plan: train(settings, plan, stop))
        leave_process_group()
    except EndedEarly as ended:
        leave_now(ended.status)
    except PreflightError as error:
        if World.from_env().rank == 0:
            sys.stderr.write(f"error: {error}\n")
        return 2
    except GrpoStreamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except Exception as error:
        if not is_lost_rank(error):
            raise
        traceback.print_exc()
        sys.stderr.write(f"{_LOST_RANK}\n")
        return 1
    finally:
        stop.end_before_training()
    return EXIT_STOPPED if stop.has_stopped else 0


def _plan_and_train(
    settings: Any, plan_run: Callable[[Any], RunPlan], train: Callable[[RunPlan], object]
) -> None:
    is_first = settings.args.process_index == 0
    if not settings.run.dry_run and not settings.run.skip_preflight:
        run_preflight(run_checks(settings), say=_say)
    with waiting_for("the data to be opened"):
        plan = plan_run(settings)
    if is_first:
        _say(plan.describe())
    if not settings.run.dry_run:
        train(plan)
    elif is_first:
        _say("dry run: the settings fit together; no weights were loaded")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
