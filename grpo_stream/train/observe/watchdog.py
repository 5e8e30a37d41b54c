"""Ends a run that has stalled, and says with which rank, stage and samples.

A rank that hangs makes all others wait in their next collective, without a word, until its
time-out, or for ever. Here every rank watches itself: one that stays in one stage for too long
writes down where it stands, gives the others time to do the same, and ends.
"""

import faulthandler
import json
import os
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from grpo_stream.train.observe.phases import Phases, Stage

EXIT_STALLED = 124
"""Exit code of a process that its watchdog ended: that of ``timeout``."""
FOLDER_NAME = "stalls"
"""Folder of an output folder with one ``rank-N.json`` for each rank that stalled."""

_MAX_GRACE_SECONDS = 20.0
_MAX_TICK_SECONDS = 5.0
_MAX_NAMED = 16
_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


@dataclass(frozen=True)
class StallReport:
    """Where a rank stands that has made no progress."""

    rank: int
    host: str
    pid: int
    global_step: int
    stage: str
    stage_number: int
    """Stages before it. Every rank goes through the same ones: the lowest number is behind."""
    seconds: float
    """In this stage."""
    collective: str | None
    """The collective in which it waits for other ranks; None where it is in none."""
    place: str
    """Innermost line of the main thread that is no library's."""
    in_use: list[str]
    """Keys of the samples in use; for a wait for data where the awaited ones lie."""
    stacks: str
    """Of all threads."""

    def line(self) -> str:
        """One line for people."""
        waits = f"waits for other ranks in {self.collective}, " if self.collective else ""
        return (
            f"rank {self.rank} ({self.host}, process {self.pid}), {waits}at {self.place}; stage "
            f"{self.stage} for {self.seconds:.0f} s, global step {self.global_step}; "
            f"{_listed(self.in_use)}"
        )


class Watchdog:
    """A thread that ends this process when its phases stall.

    Every rank needs one. The first to have reported, of those whose reports it can see, also says
    which rank the others wait for. A process whose interpreter is held by C code (a regular
    expression that never ends) cannot report: ``faulthandler`` then prints its stacks and ends it
    with exit code 1.

    Args:
        phases: What makes progress.
        step_timeout_seconds: How long one stage may last. Longer than the longest rollout,
            evaluation step or checkpoint.
        folder: Where reports are left; shared by all ranks, else a node knows of its own ones.
        rank: Of this process.
        world_size: Processes.
        global_step: Asked for when the process has stalled.
        in_use: From the stage's name to what it works on. Asked for in this thread.
        end: Ends the process at once, without its exit handlers, which may hang too.
    """

    def __init__(
        self,
        phases: Phases,
        *,
        step_timeout_seconds: float,
        folder: Path,
        rank: int,
        world_size: int,
        global_step: Callable[[], int],
        in_use: Callable[[str], Sequence[str]],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._phases = phases
        self._limit = step_timeout_seconds
        self._folder = folder
        self._rank, self._world_size = rank, world_size
        self._global_step = global_step
        self._in_use = in_use
        self._end = end
        self._main = threading.main_thread()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._grace = min(_MAX_GRACE_SECONDS, step_timeout_seconds / 4)

    def start(self) -> None:
        """Watches from now on; the calling thread is the one that is shown first."""
        self._main = threading.current_thread()
        self._path(self._rank).unlink(missing_ok=True)  # of an earlier run
        self._thread.start()

    def stop(self) -> None:
        """Watches no longer."""
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        tick = min(_MAX_TICK_SECONDS, self._limit / 10)
        while not self._stopped.wait(tick):
            # Set anew each time: it only goes off when this thread cannot run.
            held = self._limit + self._grace + 2 * tick
            faulthandler.dump_traceback_later(held, exit=True, file=sys.__stderr__ or 2)
            stage = self._phases.stage
            if time.monotonic() - stage.since > self._limit:
                self._report(stage)
                self._end(EXIT_STALLED)
                return

    def _report(self, stage: Stage) -> None:
        report = self._look(stage)
        _say(f"no progress within step_timeout_seconds={self._limit:g}: {report.line()}")
        stack = report.stacks.split(_NEXT_THREAD, 1)[0].rstrip()
        _say(f"rank {self._rank}, stack of the main thread:\n{stack}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(asdict(report), indent=1)
            self._path(self._rank).write_text(text, encoding="utf-8")
            time.sleep(self._grace)
            told = {int(path.stem.partition("-")[2]) for path in self._folder.glob("rank-*.json")}
            if self._rank == min(told):
                _say(summary(self._others(told) or [report], self._world_size))
        except OSError as error:
            _say(f"rank {self._rank} cannot leave its report in {self._folder}: {error}")

    def _look(self, stage: Stage) -> StallReport:
        frames = sys._current_frames()  # noqa: SLF001 - the documented way to other threads' stacks
        main = _stack(frames.get(self._main.ident or 0))
        texts = ["".join(traceback.format_list(main))]
        for thread in threading.enumerate():
            if thread is not self._main and thread is not self._thread:
                lines = traceback.format_list(_stack(frames.get(thread.ident or 0)))
                texts.append(f"{thread.name}:\n{''.join(lines)}")
        own = [frame for frame in main if not frame.filename.startswith(_LIBRARIES)] or main
        try:
            in_use = [str(name) for name in self._in_use(stage.name)]
        except Exception as error:  # noqa: BLE001 - the rest of the report matters more
            in_use = [f"unknown ({error})"]
        return StallReport(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            global_step=self._global_step(),
            stage=stage.name,
            stage_number=stage.number,
            seconds=time.monotonic() - stage.since,
            collective=_collective(main),
            place=f"{own[-1].name} ({own[-1].filename}:{own[-1].lineno})" if own else "?",
            in_use=in_use,
            stacks=_NEXT_THREAD.join(texts),
        )

    def _others(self, ranks: set[int]) -> list[StallReport]:
        """The reports of this stall; those of an earlier one are as old as the grace and more."""
        now, reports = time.time(), []
        for rank in sorted(ranks):
            path = self._path(rank)
            if now - path.stat().st_mtime <= self._limit + self._grace:
                fields = json.loads(path.read_text(encoding="utf-8"))
                reports.append(StallReport(**fields))
        return reports

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"


def summary(reports: Sequence[StallReport], world_size: int) -> str:
    """Which rank the others wait for, in a few lines.

    A rank without a report is stopped, gone or on a node whose folder is another one; of those
    with one, a rank that waits in no collective; of several, the one that is behind.
    """
    silent = sorted(set(range(world_size)) - {report.rank for report in reports})
    ordered = sorted(reports, key=lambda r: (r.collective is not None, r.stage_number, r.rank))
    behind, rest = ordered[0], ordered[1:]
    lines = [f"the run has stalled on {len(reports)} of {world_size} ranks and ends"]
    if silent:
        lines.append(f"no report from {_ranks(silent)}: look there first")
    lines.append(f"behind: {behind.line()}")
    where: dict[tuple[str, str | None], list[int]] = {}
    for report in rest:
        where.setdefault((report.stage, report.collective), []).append(report.rank)
    for (stage, collective), ranks in where.items():
        doing = f"in {collective}" if collective else "in no collective"
        lines.append(f"{_ranks(ranks)}: {doing}, stage {stage}")
    return "\n  ".join(lines)


def _stack(frame: object) -> list[traceback.FrameSummary]:
    return list(traceback.extract_stack(frame)) if frame is not None else []  # type: ignore[arg-type]


def _collective(stack: Sequence[traceback.FrameSummary]) -> str | None:
    names = [frame.name for frame in stack if any(part in frame.filename for part in _COLLECTIVES)]
    return next((name for name in reversed(names) if name not in _WRAPPERS), None)


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:_MAX_NAMED])) + (", ..." if len(ranks) > _MAX_NAMED else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "no samples in use"
    return f"samples {', '.join(names[:_MAX_NAMED])}{', ...' if len(names) > _MAX_NAMED else ''}"


def _say(text: str) -> None:
    # As one write: the lines of several ranks share a terminal.
    sys.stderr.write(f"watchdog: {text}\n")
    sys.stderr.flush()


_NEXT_THREAD = "\n--\n"
_WRAPPERS = ("wrapper", "log_wrapper", "decorate_context")
