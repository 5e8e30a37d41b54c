"""Settings of optimizer and schedule at a resume: what is asked for now holds, or is refused.

A checkpoint restores an optimizer with the learning rate, weight decay and betas that it was saved
with, and a schedule with its last rate (torch 2.13, transformers 5.23, deepspeed 0.19). So what was
asked for at the resume would be ignored without a word, and a run made longer would begin with the
rate of its old end. Here each checkpoint notes what it was made with; what differs is applied and
logged, and what cannot be applied to a saved state is refused.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from grpo_stream.errors import ConfigError

SETTINGS_NAME = "optimizer_settings.json"
"""File of a checkpoint: the settings, and the parameter groups as they were made from them."""

_SCHEDULE = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
_OTHERS = (
    "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "sync_ref_model",
)  # fmt: skip
_WITH_MEMORY = ("reduce_lr_on_plateau", "greedy")
"""Schedules whose rate depends on what they have seen, so that a new one cannot be worked out."""
_KNOWN = ("weight_decay", "betas", "eps")
"""Settings of a parameter group that hold where a checkpoint does not say what it was made with."""

logger = logging.getLogger(__name__)
Group = dict[str, Any]


class OptimizerSettings:
    """What optimizer and schedule of a run are made with.

    Args:
        args: The run's settings.
        master_weights: See :mod:`grpo_stream.train.models.master_weights`.
    """

    def __init__(self, args: TrainingArguments, master_weights: str = "none") -> None:
        self._args = args
        names = [name for name in (*_SCHEDULE, *_OTHERS) if hasattr(args, name)]
        self._values = {name: _plain(getattr(args, name)) for name in names}
        self._values["master_weights"] = master_weights
        self._groups: list[Group] = []

    def check(self, checkpoint: Path) -> None:
        """Refuses what cannot be applied to the state that a checkpoint holds.

        Raises:
            ConfigError: naming the setting, with both values.
        """
        saved = saved_settings(checkpoint)
        changed = self._changed(saved)
        refused = dict.fromkeys(("optim", "master_weights"), "its state is of another kind")
        types = {str(saved.get("lr_scheduler_type")), str(self._values["lr_scheduler_type"])}
        if types & set(_WITH_MEMORY):
            refused |= dict.fromkeys(_SCHEDULE, "the schedule remembers rates")
        if _has_scheduler(self._args):
            refused |= dict.fromkeys(_SCHEDULE, "the schedule is DeepSpeed's own")
        for name, why in refused.items():
            if name in changed:
                before, now = changed[name]
                expected = f"{checkpoint} was written with {before!r} ({why}); use {before!r}"
                raise ConfigError(name, now, expected)

    def note(self, optimizer: torch.optim.Optimizer, max_steps: int) -> None:
        """Notes what the parameter groups are like before a checkpoint's are loaded.

        Args:
            optimizer: As it was made, its schedule too.
            max_steps: Global steps of the run, for the schedule.
        """
        self._values["max_steps"] = max_steps
        self._groups = [dict(group) for group in optimizer.param_groups]

    def write(self, folder: Path) -> None:
        """Writes all that into a checkpoint."""
        content = {"settings": self._values, "groups": [_plain_group(one) for one in self._groups]}
        (folder / SETTINGS_NAME).write_text(json.dumps(content, indent=1))

    def apply(self, optimizer: torch.optim.Optimizer, scheduler: Any, checkpoint: Path) -> None:
        """Puts what was asked for now in the place of what a checkpoint brought.

        With the settings that it was written with, all stays as it is, to the last bit.

        Args:
            optimizer: With the checkpoint's state.
            scheduler: With the checkpoint's state.
            checkpoint: That was loaded.

        Raises:
            ConfigError: the learning rate is another one, and the schedule's cannot be worked out.
        """
        saved = _read(checkpoint)
        before = saved.get("groups") or [
            {name: value for name, value in _plain_group(group).items() if name in _KNOWN}
            for group in optimizer.param_groups
        ]
        for group, old, new in zip(optimizer.param_groups, before, self._groups, strict=True):
            changed = _changed_in(old, new)
            group.update({name: new[name] for name in changed if saved or name in _KNOWN})
        lambdas = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps DeepSpeed's
        if isinstance(lambdas, LambdaLR):
            self._set_rates(optimizer, lambdas)
        elif saved and any(
            "initial_lr" in _changed_in(*two) for two in zip(before, self._groups, strict=True)
        ):
            expected = f"{type(lambdas).__name__} cannot be worked out anew; use that of before"
            raise ConfigError("learning_rate", self._values["learning_rate"], expected)
        for name, (old_value, value) in self._changed(saved.get("settings", {})).items():
            logger.warning("resumed with another %s: %r -> %r", name, old_value, value)

    def _set_rates(self, optimizer: torch.optim.Optimizer, scheduler: LambdaLR) -> None:
        """Gives each group the rate that the schedule of now has at the steps that are done."""
        bases = [group["initial_lr"] for group in self._groups]
        done = scheduler.last_epoch
        factors = [factor(done) for factor in scheduler.lr_lambdas]
        rates = [base * factor for base, factor in zip(bases, factors, strict=True)]
        scheduler.base_lrs, scheduler._last_lr = bases, rates  # noqa: SLF001 - torch saves both
        for group, base, rate in zip(optimizer.param_groups, bases, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate

    def _changed(self, saved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Name of a setting -> its values before and now."""
        return {
            name: (saved[name], value)
            for name, value in self._values.items()
            if name in saved and saved[name] != value
        }


def saved_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was written with, by name; none by an older version."""
    settings: dict[str, Any] = _read(checkpoint).get("settings", {})
    return settings


def _read(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says; nothing if it was written by an older version."""
    path = checkpoint / SETTINGS_NAME
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def _has_scheduler(args: TrainingArguments) -> bool:
    plugin = args.deepspeed_plugin
    return plugin is not None and "scheduler" in plugin.hf_ds_config.config


def _plain_group(group: Group) -> Group:
    """What of a parameter group are settings, as JSON has it."""
    found = {name: _plain(value) for name, value in group.items() if name not in ("params", "lr")}
    kinds = (bool, int, float, str, list, type(None))
    return {name: value for name, value in found.items() if isinstance(value, kinds)}


def _changed_in(old: Group, new: Group) -> list[str]:
    """Settings of a group whose value is not the one that was noted."""
    now = _plain_group(new)
    return [name for name, value in now.items() if name not in old or old[name] != value]


def _plain(value: Any) -> Any:
    """A setting as JSON gives it back."""
    value = getattr(value, "value", value)
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else None
    return list(value) if isinstance(value, tuple) else value
