"""What is seen of a run: where its time goes, what it answers, and whether it stalls."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import TrainingArguments

from grpo_stream.train.batches.view_batches import views_in
from grpo_stream.train.observe.bad_steps import BadSteps
from grpo_stream.train.observe.difficulty_log import DifficultyLog
from grpo_stream.train.observe.metrics import Work, step_metrics
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.observe.rollout_sheets import FOLDER_NAME as SHEETS_NAME
from grpo_stream.train.observe.rollout_sheets import Rollout, RolloutSheets, weighted_rewards
from grpo_stream.train.observe.watchdog import FOLDER_NAME as STALLS_NAME
from grpo_stream.train.observe.watchdog import Watchdog
from grpo_stream.train.setup.arguments import LogArguments


@dataclass(frozen=True)
class RunFacts:
    """What an observer asks of the run, at any time and from the watchdog's thread."""

    global_step: Callable[[], int]
    data_wait_seconds: Callable[[], float]
    """How long the run has waited for data so far."""
    awaited: Callable[[], Sequence[str]]
    """Where the samples are that are needed next, for people."""


class _Done(NamedTuple):
    """What had been done at a time."""

    seconds: dict[str, float]
    """Of each phase."""
    work: Work
    global_step: int


class Observer:
    """Stopwatch, rates, pictures of rollouts, difficulty log and watchdog of one rank.

    Args:
        settings: How the run is watched.
        args: Output folder, and which rank this is: rank 0 draws and writes.
        facts: What the run knows.
        show: Hands a picture to experiment trackers, see
            :class:`grpo_stream.train.observe.rollout_sheets.RolloutSheets`.
        max_bad_steps: More bad steps than that end the run.
    """

    def __init__(
        self,
        settings: LogArguments,
        args: TrainingArguments,
        facts: RunFacts,
        show: Callable[[Path, Image.Image, int], None],
        *,
        max_bad_steps: int = 3,
    ) -> None:
        self.phases = Phases()
        """Stopwatch of this rank."""
        self.bad_steps = BadSteps(max_bad_steps)
        """Steps whose gradient is not finite."""
        self._step_timeout_seconds = settings.step_timeout_seconds
        self._folder = folder = Path(args.output_dir)
        self._facts = facts
        self._rank, self._world_size = args.process_index, args.world_size
        self._work = Work()
        self._logged: _Done | None = None
        is_shown = self._rank == 0
        self._sheets = RolloutSheets(
            folder / SHEETS_NAME,
            rollout_sheet_steps=settings.rollout_sheet_steps if is_shown else 0,
            rollout_sheet_groups=settings.rollout_sheet_groups,
            show=show,
        )
        self._difficulty: DifficultyLog | None = None
        if settings.difficulty_log:
            self._difficulty = DifficultyLog(folder, is_writing=is_shown)

    def begin_run(self) -> None:
        """What comes before the first epoch is no part of its first step."""
        self._logged = None

    @contextmanager
    def epoch(self, stepping: Any) -> Iterator[None]:
        """Watches an epoch.

        Args:
            stepping: Its method ``step`` updates the weights.
        """
        self.phases.time_calls(stepping, "step", "optimizer")
        if self._logged is None:
            self.phases.restart()
            self._logged = self._done()
        with self._watched():
            yield

    def count_rollout(self, num_prompts: int, num_completion_tokens: int) -> None:
        """Counts what all ranks have sampled."""
        self._work.num_samples += num_prompts
        self._work.num_completion_tokens += num_completion_tokens

    def show(self, rollout: Rollout, parts: NDArray[np.float32]) -> None:
        """Offers this rank's rollout to be drawn; every rank must call this.

        Args:
            rollout: Of this rank.
            parts: Rewards of all ranks in rank order, shape (completions, reward functions).
        """
        step = self._facts.global_step()
        self._sheets.offer(rollout, step)
        if self._difficulty is not None:
            num_views = views_in(rollout.batch)
            size = rollout.num_generations * num_views
            rewards = weighted_rewards(parts, rollout.weights, size)
            self._difficulty.add(step, rollout.batch["key"][::num_views], rewards)

    def since_last_log(self) -> dict[str, float]:
        """Times and rates of the global steps since this was last called, by logged name."""
        if self._logged is None:
            return {}
        before, self._logged = self._logged, self._done()
        now = self._logged
        passed = {
            name: total - before.seconds.get(name, 0.0) for name, total in now.seconds.items()
        }
        num_steps = max(1, now.global_step - before.global_step)
        return step_metrics(passed, now.work - before.work, num_steps)

    def wait(self) -> None:
        """Waits for a picture that is being drawn."""
        self._sheets.wait()

    def in_use(self, stage: str) -> Sequence[str]:
        """What a stage works on, for people."""
        return self._facts.awaited() if stage == "data_wait" else self.phases.keys

    @contextmanager
    def _watched(self) -> Iterator[None]:
        if not self._step_timeout_seconds:
            yield
            return
        watchdog = Watchdog(
            self.phases,
            step_timeout_seconds=self._step_timeout_seconds,
            folder=self._folder / STALLS_NAME,
            rank=self._rank,
            world_size=self._world_size,
            global_step=self._facts.global_step,
            in_use=self.in_use,
        )
        watchdog.start()
        try:
            yield
        finally:
            watchdog.stop()

    def _done(self) -> _Done:
        work = replace(self._work, data_wait_seconds=self._facts.data_wait_seconds())
        return _Done(self.phases.totals(), work, self._facts.global_step())
