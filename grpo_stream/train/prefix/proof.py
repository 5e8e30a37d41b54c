"""A model proves itself: which way computes its groups is measured on it, not looked up.

Before the first rollout, two short completions of the run's first prompt with an image are scored
as plain rows, one at a time, and by each shared way in question. Log-probabilities and gradient
must agree as well as the model's own arithmetic allows: that is measured on the same plain rows,
padded to another length. Nothing of the run is changed, neither random numbers nor gradients.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from grpo_stream.errors import ConfigError
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.base_model import unwrapped
from grpo_stream.train.prefix.forked_cache import checkpointing_keeps_cache
from grpo_stream.train.prefix.plain import score_plain
from grpo_stream.train.prefix.ways import PLAIN, PrefixWay

logger = logging.get_logger("grpo_stream.train")

_LENGTHS = (8, 5)  # of the completions, in tokens
_PADDING = 3
# Gradients of larger weights are not kept: norms, biases and LoRA are found in every layer.
_MAX_WEIGHTS = 2**20
# What may differ in any case, by the precision of the arithmetic: log-probabilities (root mean
# square) and gradient (relative to its length); and how often the model's own noise.
_FLOORS = {torch.float32: (1e-4, 1e-3), torch.float16: (1e-2, 3e-2), torch.bfloat16: (5e-2, 0.1)}
_NOISE_FACTOR = 4.0


class Distance(NamedTuple):
    """Between two ways to score the same completions."""

    log_probs: float
    """Root mean square of the difference."""
    gradient: float
    """Length of the difference, relative to that of the plain rows' gradient."""


@dataclass(frozen=True)
class ProofResult:
    """What came of one way."""

    distance: Distance
    """From plain rows; infinite where it cannot be computed."""
    noise: Distance
    """Of plain rows from themselves in another layout."""
    floor: Distance
    """What is allowed in any case."""
    error: str | None = None
    """Why it cannot be computed."""

    @property
    def reason(self) -> str | None:
        """Why the way is not taken; None where it is."""
        allowed = [max(f, _NOISE_FACTOR * n) for f, n in zip(self.floor, self.noise, strict=True)]
        if all(found <= most for found, most in zip(self.distance, allowed, strict=True)):
            return None
        if self.error is not None:
            return f"it cannot be computed: {self.error}"
        return (
            f"log-probabilities differ from those of plain rows by {self.distance.log_probs:.2g} "
            f"(allowed {allowed[0]:.2g}; the model's own noise {self.noise.log_probs:.2g}), the "
            f"gradient by {self.distance.gradient:.2g} of its length (allowed {allowed[1]:.2g}; "
            f"noise {self.noise.gradient:.2g})"
        )


def proven_way(
    ways: Sequence[PrefixWay], model: Any, groups: PromptGroups, accelerator: Any
) -> PrefixWay:
    """The first of some ways that gives this model's own numbers; the same on all ranks.

    Under ZeRO-3 weights are gathered: every rank has to call this equally often.

    Args:
        ways: In order of preference; plain is taken unseen.
        model: The policy, wrapped or not.
        groups: Any prompts of the run.
        accelerator: accelerate's, ready.

    Raises:
        ConfigError: none of them does.
    """
    reasons: list[str] = []
    plain: _Plain | None = None
    for way in ways:
        if way is PLAIN:
            reason = None
        else:
            plain = plain or _Plain(model, groups, accelerator)
            verdict = plain.verdict(way)
            reason = verdict.reason
            if accelerator.is_main_process and reason is None:
                found = f"{verdict.distance.log_probs:.2g}, {verdict.distance.gradient:.2g}"
                logger.info("%s groups give plain rows' numbers to %s", way.name, found)
        if reason is None:
            if reasons and accelerator.is_main_process:
                logger.warning("groups are %s: %s", way.name, "; ".join(reasons))
            return way
        reasons.append(f"not {way.name}, {reason}")
    raise ConfigError(
        "shared_prefix", ways[-1].name, f"cannot be: {'; '.join(reasons)}; use 'auto'"
    )


class _Plain:
    """Plain rows of a small group, and what other ways are from them."""

    def __init__(self, model: Any, groups: PromptGroups, accelerator: Any) -> None:
        self._model = unwrapped(model)
        self._accelerator = accelerator
        number = next((n for n, media in enumerate(groups.media) if media), 0)
        start = sum(groups.sizes[:number])
        self._group = replace(groups.rows(start, start + 1), sizes=[len(_LENGTHS)])
        self._ids, self._mask = _completions(self._group, self._model.config)
        self._weights = [
            weight
            for weight in self._model.parameters()
            if weight.requires_grad and getattr(weight, "ds_numel", weight.numel()) <= _MAX_WEIGHTS
        ]
        self._floor = Distance(*_FLOORS[_precision(self._model, accelerator)])
        try:
            self._plain = self._scored(self._rows(0))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise _misfit(self._model, error) from error
        self._noise = self._distance(self._scored(self._rows(_PADDING)))

    def verdict(self, way: PrefixWay) -> ProofResult:
        """What ``way`` makes of the group."""
        error = None
        try:
            distance = self._distance(self._scored(self._shared(way)))
        except Exception as raised:  # noqa: BLE001 - a model's code may raise anything
            distance = Distance(torch.inf, torch.inf)
            error = f"{type(raised).__name__}: {str(raised).strip().partition(chr(10))[0]}"
        figures = torch.tensor([*distance, *self._noise], device=self._accelerator.device)
        # The worst of all ranks, so that all decide alike.
        worst = self._accelerator.gather(figures[None]).amax(dim=0).tolist()
        if error is None and worst[0] == torch.inf:
            error = "another rank has the reason"
        return ProofResult(Distance(*worst[:2]), Distance(*worst[2:]), self._floor, error)

    def _rows(self, padding: int) -> Iterator[torch.Tensor]:
        """Row by row, each behind its own prompt, filled up by ``padding`` tokens."""
        alone = replace(self._group, sizes=[1])
        width = self._mask.size(1)
        for row, length in enumerate(self._mask.sum(dim=1).tolist()):
            ids = torch.nn.functional.pad(self._ids[row : row + 1, :length], (0, padding))
            mask = torch.nn.functional.pad(self._mask[row : row + 1, :length], (0, padding))
            scored, _ = score_plain(self._model, alone, ids, mask, compute_entropy=False)
            yield torch.nn.functional.pad(scored[:, :length], (0, width - length))

    def _shared(self, way: PrefixWay) -> Iterator[torch.Tensor]:
        """All rows behind one prompt."""
        group = way.prepare(self._model, self._group, self._accelerator.autocast)
        scored, _ = way.score(self._model, group, self._ids, self._mask, compute_entropy=False)
        yield scored

    def _scored(self, parts: Iterator[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and gradient, each as one vector, of rows that come in ``parts``."""
        try:
            return self._log_probs_and_gradient(parts)
        finally:
            _release_weights(self._model)

    def _log_probs_and_gradient(
        self, parts: Iterator[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Neither all the same nor of one sign: what is wrong must not add up to nothing.
        signs = torch.linspace(-1, 1, self._mask.numel(), device=self._mask.device)
        signs = signs.view(self._mask.shape)
        scored: list[torch.Tensor] = []
        sums: list[torch.Tensor | None] = [None] * len(self._weights)
        with _no_dropout(self._model), torch.enable_grad(), checkpointing_keeps_cache(self._model):
            while (part := self._next(parts)) is not None:
                start = sum(map(len, scored))
                scored.append(part.detach().float())
                if not self._weights:
                    continue
                # A part's activations are gone before the next is scored: those of one plain row
                # are as many as those of a whole shared group.
                loss = (part.float() * signs[start : start + len(part)]).sum()
                gradients = torch.autograd.grad(loss, self._weights, allow_unused=True)
                sums = [
                    old if new is None else new.float() if old is None else old + new.float()
                    for old, new in zip(sums, gradients, strict=True)
                ]
        found = [own.flatten() for own in sums if own is not None]
        return torch.cat(scored), torch.cat(found or [scored[0].new_zeros(1)])

    def _next(self, parts: Iterator[torch.Tensor]) -> torch.Tensor | None:
        with self._accelerator.autocast():
            return next(parts, None)

    def _distance(self, found: tuple[torch.Tensor, torch.Tensor]) -> Distance:
        (log_probs, gradient), (expected, own) = found, self._plain
        error = (log_probs - expected)[self._mask.bool()].square().mean().sqrt()
        length = own.norm().clamp(min=torch.finfo(own.dtype).tiny)
        return Distance(float(error), float((gradient - own).norm() / length))


def _misfit(model: torch.nn.Module, error: Exception) -> ConfigError:
    """A model cannot compute a prompt as it is encoded: it has other places for images, say."""
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    expected = f"cannot compute a prompt as its processor encodes it ({reason})"
    name = type(model).__name__
    return ConfigError("model_name_or_path", name, f"{expected}; use the model's own processor")


def _completions(group: PromptGroups, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of completions, made of the last words of their own prompt: no randomness."""
    (ids,) = group.prompt_ids
    words = ids[ids != getattr(config, "image_token_id", None)][-max(_LENGTHS) :]
    longest = len(words)
    lengths = torch.tensor([min(length, longest) for length in _LENGTHS], device=ids.device)
    rows = torch.stack([words.roll(-row) for row in range(len(_LENGTHS))])
    return rows, (torch.arange(longest, device=ids.device) < lengths[:, None]).long()


def _release_weights(model: torch.nn.Module) -> None:
    """Takes back that modules are in use, which DeepSpeed's own backward does at its end.

    Under ZeRO-3 (DeepSpeed 0.19) weights that are in use cannot be given up, and a sync with an
    engine, which gathers them one by one, would fail.
    """
    for weight in model.parameters():
        if hasattr(weight, "ds_active_sub_modules"):
            weight.ds_active_sub_modules.clear()


def _precision(model: Any, accelerator: Any) -> torch.dtype:
    """What the passes are computed in."""
    with accelerator.autocast():
        kind = accelerator.device.type
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
    own: torch.dtype = next(model.parameters()).dtype
    return own if own in _FLOORS else torch.float32


@contextmanager
def _no_dropout(model: torch.nn.Module) -> Iterator[None]:
    layers = [one for one in model.modules() if isinstance(one, torch.nn.Dropout) and one.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
