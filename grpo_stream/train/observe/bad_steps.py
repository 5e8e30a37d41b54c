"""Steps whose gradient is not finite: never taken, counted, named with their samples.

One such step would make all weights NaN, and the run would go on: transformers (5.23) leaves a loss
that is not finite out of the log (``logging_nan_inf_filter``), and sampling from NaN looks like
any bad policy. Under float16 the loss scaler skips steps while it looks for its scale; those are
its own affair until the scale is 1.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers.utils import logging

from grpo_stream.errors import BadStepsError, ConfigError

logger = logging.get_logger("grpo_stream.train")

_MAX_NAMED = 8


class BadSteps:
    """Guards the weights of one rank; the same on every rank.

    Args:
        max_bad_steps: More than so many end the run.

    Attributes:
        num: Bad steps of the run until now.
    """

    def __init__(self, max_bad_steps: int) -> None:
        self.num = 0
        self._max = max_bad_steps
        self._losses: list[tuple[Sequence[str], torch.Tensor]] = []
        self._was_dropped = False
        self._watched: torch.optim.Optimizer | None = None

    def guard(self, loss: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        """The loss, unchanged; one that is not finite makes every gradient NaN.

        So the gradients of all ranks say it, whatever sums them up, and whatever takes the step.

        Args:
            loss: Of a micro-step.
            keys: Of its samples.
        """
        is_finite = loss.detach().isfinite().all()
        self._losses.append((keys, is_finite))
        # A product with 1 changes no bit of a loss or a gradient.
        return loss * torch.where(is_finite, 1.0, math.nan).to(loss.dtype)

    def watch(self, optimizer: Any) -> None:
        """Guards an optimizer of torch's that DeepSpeed steps without a look (ZeRO stage 0)."""
        inner = getattr(optimizer, "optimizer", None)
        if isinstance(inner, torch.optim.Optimizer) and inner is not self._watched:
            inner.register_step_pre_hook(self._drop)
            self._watched = inner

    def judge(
        self,
        grad_norm: Any,
        optimizer: Any,
        model: torch.nn.Module,
        engine: Any | None,
        *,
        global_step: int,
    ) -> None:
        """Makes sure that a step is not taken whose gradient is not finite; every rank must call.

        DeepSpeed has already stepped, or refused to. Else the step comes next.

        Args:
            grad_norm: Of all ranks' gradient.
            optimizer: accelerate's.
            model: Whose gradient it is.
            engine: DeepSpeed's, if any.
            global_step: That the update makes.

        Raises:
            BadStepsError: there were too many.
        """
        losses, self._losses = self._losses, []
        if engine is not None:
            is_skipped = bool(optimizer.step_was_skipped) or self._was_dropped
            scale = float(getattr(engine.optimizer, "loss_scale", 1.0))
        else:
            is_skipped = not math.isfinite(float(grad_norm))
            scale = 1.0 if optimizer.scaler is None else optimizer.scaler.get_scale()
            if optimizer.scaler is None:
                # What accelerate (1.15) is asked before the schedule moves on.
                optimizer._is_overflow = is_skipped  # noqa: SLF001
                if is_skipped:
                    model.zero_grad()  # without gradients an optimizer does nothing
        self._was_dropped = False
        if is_skipped:
            self._count(losses, global_step, scale)

    def _count(
        self, losses: Sequence[tuple[Sequence[str], torch.Tensor]], step: int, scale: float
    ) -> None:
        own = [list(keys) for keys, is_finite in losses if not is_finite]
        bad: list[list[str]] = gather_object([key for keys in own for key in keys])
        if not bad and scale > 1:
            return
        keys = bad or gather_object([key for keys, _ in losses for key in keys])
        self.num += 1
        names = list(dict.fromkeys(str(key) for key in keys))
        named = ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
        what = f"the {'loss' if bad else 'gradient'} of samples {named} is not finite"
        if self.num > self._max:
            raise BadStepsError(
                f"global step {step}: {what}. The run has had {self.num} such steps, none of which "
                f"was taken, and max_bad_steps={self._max}. Look at the rewards of these samples, "
                "lower learning_rate, or resume from an older checkpoint"
            )
        logger.warning(
            "global step %d: %s; the step is not taken (%d of at most %d)",
            step,
            what,
            self.num,
            self._max,
        )

    def _drop(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        if all(bool(grad.isfinite().all()) for grad in gradients if grad is not None):
            return
        self._was_dropped = True
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def check_max_bad_steps(value: int) -> None:
    """Checks the setting ``max_bad_steps``.

    Raises:
        ConfigError: it is negative.
    """
    if value < 0:
        raise ConfigError("max_bad_steps", value, "must be at least 0, for example 3")
