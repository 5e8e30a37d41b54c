"""A launch script's run: from its first signal handler to its exit code."""

import sys
import traceback
from collections.abc import Callable

from grpo_stream.errors import GrpoStreamError
from grpo_stream.stream.world import World
from grpo_stream.train.cluster.early_end import EndedEarly, leave_now
from grpo_stream.train.cluster.exit_with_launcher import end_with_launcher
from grpo_stream.train.cluster.preflight_report import PreflightError
from grpo_stream.train.cluster.process_group import is_lost_rank
from grpo_stream.train.cluster.stop_on_request import EXIT_STOPPED, StopOnDemand

_LOST_RANK = (
    "error: another rank has gone, or did not answer within ddp_timeout; its own log says why. "
    "The same command with --resume_from_checkpoint auto resumes from the last checkpoint."
)


def exit_code_of(run: Callable[[StopOnDemand], object]) -> int:
    """Runs a script's work, and says what came of it. For the main thread.

    Args:
        run: Is given what signals ask of it; a trainer's callback once there is one.

    Returns:
        0 done, 1 another rank was lost, 2 settings or data that cannot work, 75 stopped on demand.
    """
    stop = StopOnDemand()
    stop.listen()
    end_with_launcher(stop.is_asked)
    try:
        run(stop)
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
