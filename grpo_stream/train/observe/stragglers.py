"""Which rank holds the others up, in the log; and where each rank stands, in its file.

Under ZeRO-3 all ranks wait for the slowest in every layer, so sampling, scoring and updates take
equally long on all of them: one GPU that is hot, one node with a slow disk or a busy CPU costs the
whole run its speed, and no phase of ``time/`` shows whose fault it is. Two things do: the time that
a rank spends where it waits for nobody (its data, its images on their way to the device), and a
small piece of work on its device, of which each rank takes its own time. The comparison costs a
gather of a few floats and half a millisecond at each log, and names the rank to look at.

The files (:mod:`grpo_stream.train.observe.heartbeat`) answer another question: where does each
rank stand, asked from outside. The watchdog tells of a stall from within and after its time-out;
a rank whose process is gone, stopped or not yet in its first step can't. ``launch/health.py``
reads the files beside a run that hangs or has ended, and names who is silent since when.
"""

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import TrainerCallback, TrainerState

from grpo_stream.train.observe.heartbeat import ENDED, MAX_RANKS_WITH_FILES, Heartbeat

_logger = logging.getLogger(__name__)
_WARN_SLOWDOWN = 1.2
_PROBE_SIZE = {"cuda": 4096, "cpu": 256}
DEVICE = "device"
"""Column of the device's own speed: seconds of a small matrix product."""


class Straggler(NamedTuple):
    """The rank that is furthest behind the median in one column."""

    rank: int
    column: str
    seconds: float
    median: float
    slowdown: float
    """How many times longer a step takes for it."""


def find_straggler(
    columns: Sequence[str], rows: Sequence[Sequence[float]], step_seconds: float
) -> Straggler:
    """The rank whose excess over the median costs the most.

    Args:
        columns: What was measured; for :data:`DEVICE` a ratio counts, else the excess over the
            median, as a part of the step.
        rows: Seconds, one row for each rank.
        step_seconds: Wall time of what was measured.
    """
    found = []
    for place, column in enumerate(columns):
        values = [row[place] for row in rows]
        rank, most = max(enumerate(values), key=lambda pair: pair[1])
        median = statistics.median(values)
        if column == DEVICE:
            slowdown = most / median if median > 0 else 1.0
        else:
            rest = step_seconds - (most - median)
            slowdown = step_seconds / rest if rest > 0 else float(len(rows))
        found.append(Straggler(rank, column, most, median, slowdown))
    return max(found, key=lambda one: one.slowdown)


def device_seconds(device: torch.device) -> float:
    """The shortest of three times that ``device`` takes for a few small matrix products."""
    size = _PROBE_SIZE.get(device.type, _PROBE_SIZE["cpu"])
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    factor = torch.ones(size, size, dtype=kind, device=device)
    times = []
    for _ in range(3):
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(factor, factor)
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _beating(event: str) -> Callable[..., None]:
    """A method of :class:`HealthLog` for an event of the trainer at which the rank beats."""

    def beat(self: "HealthLog", _args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        self.beat(state.global_step, event)

    return beat


class HealthLog(TrainerCallback):
    """Names the slowest rank at every logging step, and beats.

    One all-gather of a few floats a logging step, and half a millisecond on a GPU. Logged:
    ``health/slowest_rank``; ``health/slowdown``, how many times longer a step takes for it;
    ``health/device_slowdown``, the slowest device against the median. A warning names phase and
    seconds where the slowdown is above 1.2.

    Args:
        output_dir: Where the files of :mod:`grpo_stream.train.observe.heartbeat` go.
        own_seconds: Sums so far of the phases in which a rank waits for no other one; they only
            grow, and have the same names on every rank.
        stage: What this rank is doing; None: the trainer's last event.
        keys: Samples in use.
    """

    def __init__(
        self,
        output_dir: str,
        own_seconds: Callable[[], Mapping[str, float]],
        *,
        stage: Callable[[], str] | None = None,
        keys: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        state = PartialState()
        self._own_seconds, self._stage, self._keys = own_seconds, stage, keys
        self._heartbeat: Heartbeat | None = None
        if state.num_processes <= MAX_RANKS_WITH_FILES or state.local_process_index == 0:
            self._heartbeat = Heartbeat(output_dir, state.process_index, state.num_processes)
        self._before, self._since = dict(own_seconds()), time.perf_counter()

    on_train_begin = _beating("begin")
    on_step_begin = _beating("step")
    on_substep_end = _beating("step")
    on_step_end = _beating("step")
    on_prediction_step = _beating("evaluate")
    on_save = _beating("save")
    on_train_end = _beating(ENDED)

    @classmethod
    def of_trainer(cls, trainer: Any) -> "HealthLog":
        """For a :class:`grpo_stream.train.trainer.PersonalizedGRPOTrainer`.

        Alone a rank is while its loader makes it wait, and while it hands pixels to its device.
        """
        loader, phases = trainer.train_loader, trainer.phases

        def own_seconds() -> dict[str, float]:
            device_input = phases.totals().get("device_input", 0.0)
            return {"data_wait": loader.wait_seconds, "device_input": device_input}

        return cls(
            trainer.args.output_dir,
            own_seconds,
            stage=lambda: str(phases.stage.name),
            keys=lambda: list(phases.keys),
        )

    def add_to(self, trainer: Any) -> None:
        """Has the trainer tell it of its events, and ask it at each log of training."""
        trainer.add_callback(self)
        trainer.run_metrics.at_each_log(self.measure)

    def measure(self) -> dict[str, float]:
        """What is logged, since it was last asked for; every rank must ask."""
        now = time.perf_counter()
        so_far, device = dict(self._own_seconds()), PartialState().device
        own = {name: so_far[name] - self._before.get(name, 0.0) for name in so_far}
        step_seconds, self._since, self._before = now - self._since, now, so_far
        own[DEVICE] = device_seconds(device)
        # A world of one gathers what it has; float64 is not what every accelerator has.
        rows = gather(torch.tensor([list(own.values())], device=device)).tolist()
        worst = find_straggler(list(own), rows, step_seconds)
        if worst.slowdown > _WARN_SLOWDOWN and len(rows) > 1 and PartialState().is_main_process:
            _logger.warning(
                "rank %d is slow: %s %.3g s, the median is %.3g s; a step takes %.2f times as long",
                *worst,
            )
        devices = [row[-1] for row in rows]
        return {
            "health/slowest_rank": float(worst.rank),
            "health/slowdown": worst.slowdown,
            "health/device_slowdown": max(devices) / statistics.median(devices),
        }

    def beat(self, global_step: int, event: str) -> None:
        """Rewrites this rank's file, if the last time was long enough ago."""
        if self._heartbeat is not None:
            stage = event if self._stage is None or event == ENDED else self._stage()
            self._heartbeat.beat(global_step, stage, self._keys())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
