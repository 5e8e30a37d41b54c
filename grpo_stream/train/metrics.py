"""What a run says while it runs: a progress bar and one short line per logging step."""

from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

_SHOWN = {
    "reward": "reward",
    "frac_reward_zero_std": "zero-variance groups",
    "completions/mean_length": "answer tokens",
    "stream/wait_seconds": "waited for data (s)",
    "step_time": "step (s)",
    "eval_reward": "eval reward",
}
"""Logged name -> what the line calls it. Everything goes to the log history and report_to."""


class ShortProgressCallback(ProgressCallback):
    """transformers' progress bar (5.23) with the few numbers that one watches."""

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
            line = short_line(state.global_step, logs)
            if line:
                self.training_bar.write(line)


def short_line(global_step: int, logs: dict[str, Any]) -> str:
    """One line for people; empty where nothing of interest was logged."""
    shown = [
        f"{label} {logs[name]:.4g}" for name, label in _SHOWN.items() if _is_number(logs, name)
    ]
    return f"global step {global_step}: {', '.join(shown)}" if shown else ""


def _is_number(logs: dict[str, Any], name: str) -> bool:
    return isinstance(logs.get(name), int | float)
