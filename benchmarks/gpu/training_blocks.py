"""Blocks of ``gpu_check`` beside the estimate of memory, and with whole trainers."""

import argparse
import logging
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.gpu.gpu_bench import Bench
from benchmarks.step import step
from grpo_stream.train.setup.memory.group_memory import Batch
from grpo_stream.train.setup.memory.memory_estimate import Zero, activation_bytes, head_bytes
from grpo_stream.train.setup.memory.model_sizes import MetaModel

_GB = 10**9
_BAD_STEP = 2


def memory(bench: Bench) -> None:
    """Gigabytes that a micro-step takes above weights and gradients, beside the estimate's.

    On a GPU the peak; elsewhere what autograd keeps, which is all but the head's tiles.
    """
    model, counted = bench.policy().train(), MetaModel(bench.config)

    def measure(num_groups: int) -> dict[str, float]:
        zero = Zero(1, gradient_checkpointing=checkpointing)
        batch = batch_of(bench, model, num_groups)
        estimated = activation_bytes(counted, zero, batch) + head_bytes(counted, zero, batch)
        measured = _bytes_of_micro_step(bench, model, num_groups)
        return {"measured": measured / _GB, "estimated": estimated / _GB}

    for checkpointing in (True, False):
        bench.set_checkpointing(model, is_wanted=checkpointing)
        for num_groups in (1, 4):
            name = f"{num_groups} groups{', checkpointing' if checkpointing else ''}"
            bench.attempt(name, partial(measure, num_groups))


def batch_of(bench: Bench, model: Any, num_groups: int) -> Batch:
    """A micro-step of so many of the bench's groups."""
    (ids,) = bench.groups(model, 1).prompt_ids
    return Batch(
        prompt_tokens=len(ids),
        image_tokens=int((ids == model.config.image_token_id).sum()),
        completion_tokens=bench.num_tokens,
        num_generations=bench.num_generations,
        groups_per_micro_step=num_groups,
    )


def _bytes_of_micro_step(bench: Bench, model: Any, num_groups: int) -> int:
    bench.train_step(model, num_groups)  # makes the gradients
    if bench.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        bench.train_step(model, num_groups)
        return int(torch.cuda.max_memory_allocated() - before)
    known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        bench.score(model, bench.packed, num_groups)
    return sum(storage.nbytes() for storage in kept.values())


def steps(bench: Bench) -> None:
    """Three whole steps of one group beside trl's own trainer (``python -m benchmarks step``).

    On a GPU with the layers of the 3B model at a quarter of its width. Tokens are sampled eagerly;
    what compiling changes is the block ``rollout``'s.
    """
    words = ["--num-steps", "3", "--rounds", "1", "--json"]
    if bench.is_cuda:
        words += ["--device", "cuda", "--deep", "--hidden-size", "512", "--num-tokens", "64"]
    else:
        words += ["--hidden-size", "64", "--max-pixels", "25088", "--num-tokens", "4"]
    figures = step.measure(_step_arguments([*words, "--decode", "eager"]))
    names = (
        "step_ratio",
        "rollout_ratio",
        "update_ratio",
        "peak_memory_ratio",
        "max_abs_logprob_diff",
        "loss_diff",
        "seconds",
        "num_prompt_tokens",
        "way",
    )
    for name in names:
        bench.note(name, figures[name])


def bad_step(bench: Bench) -> None:
    """What becomes of a step whose gradient is NaN: the second of three, of a small policy."""
    from benchmarks.step.step_run import make_trainer  # noqa: PLC0415 - both trainers

    small = ["--hidden-size", "64", "--max-pixels", "25088", "--num-tokens", "4", "--beta", "0"]
    words = [
        *small,
        "--num-steps",
        "1",
        "--decode",
        "eager",
        "--device",
        "cuda" if bench.is_cuda else "cpu",
    ]
    with tempfile.TemporaryDirectory() as temp:
        job = step.make_job(_step_arguments(words), Path(temp))
        job |= {"who": "ours", "learning_rate": 1e-3, "max_grad_norm": 1.0}
        trainer = make_trainer(job)
        watch = _Watch(trainer.model)
        trainer.add_callback(watch)
        told = _Told()
        logger = logging.getLogger("grpo_stream.train")
        logger.addHandler(told)
        try:
            trainer.train()
        finally:
            logger.removeHandler(told)
            trainer.close()
    bench.note("moved", watch.moved)
    bench.note("finite", watch.is_finite)
    bench.note("logged", [line for line in told.lines if "is not finite" in line])


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Spoils a gradient, and says in which steps the weights moved."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._global_step = 0
        self._before = self._sum()
        self.moved: list[bool] = []
        self.is_finite = True
        next(model.parameters()).register_hook(self._spoil)

    def _spoil(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (math.nan if self._global_step == _BAD_STEP else 1.0)

    def _sum(self) -> float:
        return float(sum(one.detach().double().square().sum() for one in self._model.parameters()))

    def on_step_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        """See ``TrainerCallback``."""
        self._global_step = state.global_step + 1
        self._before = self._sum()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See ``TrainerCallback``."""
        now = self._sum()
        self.moved.append(now != self._before)
        self.is_finite = self.is_finite and math.isfinite(now)


class _Told(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        self.lines.append(record.getMessage())


def _step_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    step.add_command(parser.add_subparsers())
    return parser.parse_args(["step", *words])
