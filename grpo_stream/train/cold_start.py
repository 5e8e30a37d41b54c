"""A short supervised cold start: teaches a policy the form of the answer before GRPO.

GRPO can only sharpen what the policy already samples now and then; a policy that never answers in
a readable form gets reward 0 everywhere and learns nothing. A plain loop in one process: a few
minutes of work, stopped on a dev split as soon as the policy is good enough to be sharpened.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from grpo_stream.errors import ConfigError
from grpo_stream.flags import setting
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.supervised.cold_start_batches import model_inputs


@dataclass(frozen=True)
class ColdStartConfig:
    """How a cold start is run.

    Raises:
        ConfigError: a value cannot work.
    """

    max_steps: int = setting(400, "Updates at most; the learning rate falls over this many.")
    learning_rate: float = setting(1e-3, "Peak of the learning rate.")
    warmup_steps: int = setting(40, "Updates over which it rises from 0.")
    final_learning_rate_ratio: float = setting(
        0.1, "What is left of the peak at the end of the cosine."
    )
    max_grad_norm: float = setting(1.0, "Longer gradients are cut to this norm.")
    eval_steps: int = setting(
        15,
        "Updates between two looks at the dev split; a third of it from half of stop_accuracy on, "
        "since accuracy then rises within a few updates.",
    )
    stop_accuracy: float = setting(0.35, "Dev accuracy at which it stops; 1.1 never stops early.")

    def __post_init__(self) -> None:
        for name in ("max_steps", "eval_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1, for example 25")
        if self.learning_rate <= 0:
            raise ConfigError("learning_rate", self.learning_rate, "must be above 0, as in 1e-3")

    def looks_at(self, num_steps: int, dev_accuracy: float) -> bool:
        """Whether the dev split is looked at after ``num_steps`` updates.

        Args:
            num_steps: Updates made.
            dev_accuracy: At the last look.
        """
        is_close = dev_accuracy >= self.stop_accuracy / 2
        every = max(1, self.eval_steps // 3) if is_close else self.eval_steps
        return num_steps == self.max_steps or num_steps % every == 0

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to ``final_learning_rate_ratio`` of the peak."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        low = self.final_learning_rate_ratio
        return self.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class ColdStartResult:
    """What a cold start came to."""

    num_steps: int
    """Updates made."""
    dev_accuracy: float
    """On the dev split, at the last look."""
    losses: list[float]
    """Mean negative log-likelihood of an answer token, per update."""
    dev_accuracies: list[tuple[int, float]]
    """(updates made, accuracy) of every look."""


def cold_start(
    model: Any,
    loader: PromptLoader[Batch],
    config: ColdStartConfig,
    dev_accuracy: Callable[[], float],
) -> ColdStartResult:
    """Trains ``model`` in place on prompts with answers.

    Args:
        model: A policy on its device.
        loader: Batches of ``ColdStartCollator``; read over and over, each epoch in another order.
        config: Steps, learning rate, when to stop.
        dev_accuracy: Evaluates the policy on the dev split.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    losses: list[float] = []
    looks: list[tuple[int, float]] = []
    batches = _endless(loader)
    model.train()
    with tqdm(total=config.max_steps, desc="cold start", unit="step", mininterval=0.5) as progress:
        for step in range(config.max_steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
            loss = model(**model_inputs(next(batches), device)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            progress.update()
            if config.looks_at(step + 1, looks[-1][1] if looks else 0.0):
                looks.append((step + 1, dev_accuracy()))
                model.train()
                progress.set_postfix(loss=f"{losses[-1]:.3f}", dev_accuracy=f"{looks[-1][1]:.3f}")
                if looks[-1][1] >= config.stop_accuracy:
                    break
    return ColdStartResult(len(losses), looks[-1][1], losses, looks)


def _endless(loader: PromptLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader
