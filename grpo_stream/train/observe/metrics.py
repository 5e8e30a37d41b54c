"""What a run logs: the one route for its numbers, and a short line per logging step for people."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_stream.stream.loader import PromptLoader
from grpo_stream.train.observe.phases import PAUSES, PHASES

_SHOWN = {
    "reward": "reward",
    "frac_reward_zero_std": "zero-variance groups",
    "completions/mean_length": "answer tokens",
    "time/data_wait_share": "share waited for data",
    "step_time": "step (s)",
    "speed/completion_tokens_per_second": "answer tokens/s",
    "eval_reward": "eval reward",
}
"""Logged name -> what the line calls it. Everything goes to the log history and report_to."""
SHOWN_OF_SUPERVISED = {
    "loss": "loss",
    "mean_token_accuracy": "token accuracy",
    "time/data_wait_share": "share waited for data",
    "time/step": "step (s)",
    "eval_loss": "eval loss",
    "eval_point_accuracy": "eval accuracy",
}
"""The same for supervised fine-tuning."""

Mode = Literal["train", "eval"]


class RunMetrics:
    """The one route by which a number reaches the log, besides those that trl makes itself.

    To add a metric, choose a name ``group/name``, give it a row in docs/logging.md, and

    * where an event makes the number known (a batch was read, a group was sampled), call
      ``log_metric(mode, name, value)`` there: the mean since the last log is logged;
    * where the number belongs to the time between two logs (seconds of a phase, the slowest
      rank), give a function that returns such numbers by name to :meth:`at_each_log`, once.

    A reward function is handed ``log_metric(name, value)`` by trl, with the same meaning. All of
    it ends up in trl's own lists, so it is averaged, saved in checkpoints and reported like trl's
    numbers, and its name begins with ``eval_`` in an evaluation.

    Rank 0 logs, and a value is that of its rank: what is of all ranks has to be gathered before.

    Args:
        values: trl's lists by mode and name (``GRPOTrainer._metrics``, trl 1.16), which its
            ``log`` averages and clears.
    """

    def __init__(self, values: Mapping[str, dict[str, list[float]]]) -> None:
        self._values = values
        self._functions: list[Callable[[], Mapping[str, float]]] = []

    def log_metric(self, mode: Mode, name: str, value: float) -> None:
        """Adds a value to those whose mean is logged next."""
        self._values[mode].setdefault(name, []).append(value)

    def at_each_log(self, function: Callable[[], Mapping[str, float]]) -> None:
        """Asks ``function`` for numbers by name at each log of training, on every rank."""
        self._functions.append(function)

    def ask(self) -> None:
        """A log of training is about to be written: asks all functions, in their order."""
        for function in self._functions:
            for name, value in function().items():
                self.log_metric("train", name, value)

    def last(self, mode: Mode, name: str) -> float:
        """The value of ``name`` that was added last, by trl or here."""
        return self._values[mode][name][-1]

    @contextmanager
    def repeated(self, mode: Mode, times: int) -> Iterator[None]:
        """Counts each value that is added inside, by trl or here, so many times."""
        lists = self._values[mode]
        before = {name: len(values) for name, values in lists.items()}
        yield
        for name, values in lists.items():
            values.extend(values[before.get(name, 0) :] * (times - 1))

    def state(self) -> dict[str, dict[str, list[float]]]:
        """All values since the last log, by mode and name."""
        return {mode: dict(lists) for mode, lists in self._values.items()}

    def restore(self, state: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Goes on from what :meth:`state` returned, in an earlier process perhaps."""
        for mode, lists in state.items():
            self._values[mode].clear()
            self._values[mode].update(lists)


class ShortProgressCallback(ProgressCallback):
    """transformers' progress bar (5.23) with the few numbers that one watches.

    Args:
        shown: Logged name -> what the line calls it.
    """

    def __init__(self, shown: Mapping[str, str] = _SHOWN) -> None:
        super().__init__()
        self._shown = shown

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Overrides ``ProgressCallback.on_log``: the full log of a GRPO step fills a screen."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            line = short_line(state.global_step, logs, self._shown)
            if line:
                self.training_bar.write(line)


def stream_metrics(loader: PromptLoader[Any]) -> dict[str, float]:
    """Sums of what this rank's stream did so far, by the names under which they are logged.

    ``wait_seconds`` is what the step waited for batches, ``num_samples`` what was delivered,
    ``num_read_again`` samples whose bytes were right only at the second reading. From object
    storage also requests, retries and bytes (docs/storage.md), ``retry_wait_seconds`` over all
    threads, and what a cache did (docs/cache.md) as ``cache/...``.
    """
    counters = loader.stream.counters
    sums = {
        "wait_seconds": loader.wait_seconds,
        "num_samples": float(counters.num_samples),
        "num_read_again": float(counters.num_read_again),
    }
    for name, value in loader.stream.metrics().items():
        sums["retry_wait_seconds" if name == "waited_seconds" else name] = value
    return sums


def short_line(global_step: int, logs: dict[str, Any], shown: Mapping[str, str] = _SHOWN) -> str:
    """One line for people; empty where nothing of interest was logged."""
    parts = [f"{label} {logs[name]:.4g}" for name, label in shown.items() if _is_number(logs, name)]
    return f"global step {global_step}: {', '.join(parts)}" if parts else ""


def _is_number(logs: dict[str, Any], name: str) -> bool:
    return isinstance(logs.get(name), int | float)


@dataclass
class Work:
    """What all ranks together have done so far."""

    num_samples: int = 0
    """Prompts."""
    num_completion_tokens: int = 0
    data_wait_seconds: float = 0.0
    """For each generation batch that of the rank which waited longest for its data."""

    def __sub__(self, before: "Work") -> "Work":
        return Work(
            self.num_samples - before.num_samples,
            self.num_completion_tokens - before.num_completion_tokens,
            self.data_wait_seconds - before.data_wait_seconds,
        )


def step_metrics(seconds: Mapping[str, float], work: Work, num_steps: int) -> dict[str, float]:
    """Times and rates of the last global steps, by the names under which they are logged.

    Args:
        seconds: Of each phase (:mod:`grpo_stream.train.observe.phases`) in those steps.
        work: Of those steps, over all ranks.
        num_steps: Global steps.

    Returns:
        ``time/PHASE`` and ``time/step``, seconds per global step; ``time/data_wait_share``, of the
        step's time; ``speed/samples_per_second``, ``speed/completion_tokens_per_second``; and
        ``speed/rollout_tokens_per_second``, tokens per second of rollout alone. A pause, an
        evaluation or a checkpoint, is no part of a step; it is in seconds of its own.
    """
    total = sum(value for name, value in seconds.items() if name not in PAUSES)
    metrics = {f"time/{name}": seconds.get(name, 0.0) / num_steps for name in PHASES}
    metrics |= {f"time/{name}": seconds[name] for name in PAUSES if seconds.get(name)}
    metrics["time/step"] = total / num_steps
    metrics["time/data_wait_share"] = _rate(work.data_wait_seconds, total)
    metrics["speed/samples_per_second"] = _rate(work.num_samples, total)
    tokens = work.num_completion_tokens
    metrics["speed/completion_tokens_per_second"] = _rate(tokens, total)
    metrics["speed/rollout_tokens_per_second"] = _rate(tokens, seconds.get("rollout", 0.0))
    return metrics


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
