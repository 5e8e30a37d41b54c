"""Short runs on one or two ZeRO-3 ranks, with the shared prefix and without; a process per rank.

Every rank writes what it saw of each run to ``rank-N.json`` in the folder that it is given.
Behind it stand the learning rate and the names of runs.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import torch
from deepspeed.utils import get_z3_leaf_modules
from peft import LoraConfig
from trl import GRPOConfig

from grpo_stream.train import rollout
from grpo_stream.train.cluster.process_group import leave_process_group, start_process_group
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.zero_trace import coordinator_of
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.runs import logged
from tests.train.side_by_side import graded
from tests.train.support import QUIET

ROOT = Path(__file__).resolve().parents[2]
NUM_GENERATIONS, NUM_PROMPTS = 4, 2  # per rank
ZERO3 = json.loads((ROOT / "ds_configs/zero3_cpu.json").read_text())
TRACED = {
    "is_forced": False,
    "max_steps": 4,
    "num_iterations": 1,
    "deepspeed": ZERO3
    | {"zero_optimization": ZERO3["zero_optimization"] | {"stage3_prefetch_bucket_size": 100_000}},
}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"shared_prefix": "off"},
    "shared": {"shared_prefix": "on"},
    "checkpointing": {"shared_prefix": "on", "gradient_checkpointing": True},
    "frozen": {"shared_prefix": "on", "freeze_vision_tower": True},
    "lora": {"shared_prefix": "on", "lora": True, "gradient_checkpointing": True},
    "plain lora": {"shared_prefix": "off", "lora": True},
    "uneven": {"shared_prefix": "on", "router_aux_loss_coef": 0.1, "gradient_checkpointing": True},
    "plain uneven": {"shared_prefix": "off", "router_aux_loss_coef": 0.1},
    "sampled": {"is_forced": False, "ds3_gather_for_generation": False, "max_steps": 2},
    "gathered": {"is_forced": False, "max_steps": 2},
    "compiled": {"is_forced": False, "max_steps": 2, "decode": "compiled"},
    "trace": TRACED,
    "no trace": {**TRACED, "is_trace_kept": False},
    "scored trace": {**TRACED, "num_iterations": 2, "max_steps": 8},
    # As docs/training.md has it for GPUs without bfloat16.
    "float16": {
        "is_forced": False,
        "max_steps": 3,
        "num_iterations": 1,
        "fp16": True,
        "model_init_kwargs": {"dtype": "float16"},
        "deepspeed": {**ZERO3, "fp16": {"enabled": "auto", "initial_scale_power": 8}},
    },
}


def main(folder: Path, learning_rate: float, names: list[str]) -> None:
    start_process_group(use_cpu=True)
    seen = {
        name: run(folder, learning_rate, is_uneven="uneven" in name, **RUNS[name]) for name in names
    }
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(seen))
    leave_process_group()


def make_trainer(
    folder: Path,
    learning_rate: float,
    *,
    shared_prefix: str,
    freeze_vision_tower: bool,
    is_proven: bool,
    lora: bool,
    decode: str = "auto",
    **changes: Any,
) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        **QUIET,
        "logging_strategy": "no",
        "deepspeed": str(ROOT / "ds_configs/zero3_cpu.json"),
        "per_device_train_batch_size": NUM_PROMPTS * NUM_GENERATIONS,
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": 8,
        "num_iterations": 2,
        "max_steps": 4,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "beta": 0.1,
        "seed": 1,
    }
    return PersonalizedGRPOTrainer(
        str(folder / "tiny"),
        graded,
        GRPOConfig(**(settings | changes)),
        json.loads((folder / "records.json").read_text()),
        processing_class=load_processor(
            folder / "tiny", min_pixels=28 * 28, max_pixels=32 * 32 * 16
        ),
        images_root=ROOT / "data/screenshots",
        shared_prefix=shared_prefix,
        freeze_vision_tower=freeze_vision_tower,
        shared_prefix_check=is_proven,
        decode=decode,
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], r=4) if lora else None,
    )


class Spy:
    """Notes what a trainer samples, loses and calls; forced completions are the same everywhere."""

    def __init__(self, trainer: Any, *, is_forced: bool) -> None:
        self.completions: list[list[list[int]]] = []
        self.losses: list[float] = []
        self.gathered: list[list[int]] = []
        """Of each forward and backward, see :func:`count_gathered`."""
        self.num_tower_calls = 0
        self._trainer = trainer
        self._is_forward = [False]
        self._generate, self._compute_loss = trainer._generate_single_turn, trainer._compute_loss
        trainer._generate_single_turn = self._forced if is_forced else self._sampled
        trainer._compute_loss = self._lost
        trainer.model.get_encoder("image").register_forward_pre_hook(self._called)

    def _sampled(self, ids: list[Any], *args: Any, **kwargs: Any) -> Any:
        sampled = self._generate(ids, *args, **kwargs)
        self.completions.append(sampled[0])
        return sampled

    def _forced(self, ids: list[Any], *_: Any, **__: Any) -> Any:
        generator = torch.Generator().manual_seed(len(self.completions))
        rows = torch.randint(20, 300, (len(ids), 8), generator=generator).tolist()
        self.completions.append([row[: 1 + number * 3 % 8] for number, row in enumerate(rows)])
        return self.completions[-1], None

    def _lost(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.gathered:
            count_gathered(self._trainer.accelerator, self.gathered, self._is_forward)
        self.gathered.append([0, 0])
        self._is_forward[0] = True
        loss: torch.Tensor = self._compute_loss(*args, **kwargs)
        self._is_forward[0] = False
        self.losses.append(loss.item())
        return loss

    def _called(self, *_: Any) -> None:
        self.num_tower_calls += 1


def run(
    folder: Path,
    learning_rate: float,
    *,
    shared_prefix: str = "on",
    freeze_vision_tower: bool = False,
    is_forced: bool = True,
    is_uneven: bool = False,
    is_trace_kept: bool = True,
    lora: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    trainer = make_trainer(
        folder,
        learning_rate,
        shared_prefix=shared_prefix,
        freeze_vision_tower=freeze_vision_tower,
        is_proven=not freeze_vision_tower and (is_forced or "fp16" in changes),  # calls the tower
        lora=lora,
        **changes,
    )
    spy = Spy(trainer, is_forced=is_forced)
    if not is_forced and os.environ["RANK"] == "1":  # ends with its first token, the other goes on
        trainer.generation_config.eos_token_id = list(
            range(trainer.model.config.text_config.vocab_size)
        )
    if is_uneven:
        route_unevenly(trainer.model)
    keep = (
        contextlib.nullcontext()
        if is_trace_kept
        else mock.patch.object(rollout, "kept_trace", return_value=contextlib.nullcontext())
    )
    with keep:
        trainer.train()
    trainer.close()
    return seen_in(trainer, spy)


def seen_in(trainer: Any, spy: Spy) -> dict[str, Any]:
    module = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    weights = [weight for weight in module.parameters() if weight.requires_grad][::5]
    with deepspeed.zero.GatheredParameters(weights):
        values = [value for weight in weights for value in weight.flatten()[:32].tolist()]
    return {
        "completions": spy.completions,
        "losses": spy.losses,
        "gathered": spy.gathered,
        "dtype": str(next(module.parameters()).dtype),
        "num_bad_steps": trainer._observer.bad_steps.num,
        "weights": values,
        "num_tower_calls": spy.num_tower_calls,
        "way": trainer.prefix_way,
        "is_compiled": trainer._rollout._decoder.is_compiled,
        "fallback": trainer._rollout._decoder.fallback,
        "differences": [
            logged(trainer, f"sampling/sampling_logp_difference/{name}") for name in ("mean", "max")
        ],
        "num_leaves": len(get_z3_leaf_modules(module)),
        **({} if trainer.ref_model is None else reference_of(trainer.ref_model)),
    }


def reference_of(engine: Any) -> dict[str, int]:
    return {
        "num_reference_leaves": len(get_z3_leaf_modules(engine.module)),
        "num_reference_hooks": len(engine.optimizer.forward_hooks),
    }


def count_gathered(accelerator: Any, counts: list[list[int]], is_forward: list[bool]) -> None:
    """Adds to the last of ``counts`` what is gathered when it is needed, and what is ahead."""
    coordinator = coordinator_of(accelerator)
    profiler = coordinator._PartitionedParameterCoordinator__profiler
    ahead = (coordinator.FORWARD_PREFETCH_SUBMIT, coordinator.BACKWARD_PREFETCH_SUBMIT)
    needed = (coordinator.FORWARD_FETCH_SUBMIT, coordinator.BACKWARD_FETCH_SUBMIT)

    def stopped(name: str, _num_weights: int) -> None:
        if is_forward[0] or torch._C._current_graph_task_id() != -1:
            counts[-1][0] += name in needed
            counts[-1][1] += name in ahead

    profiler.stop_event = stopped


def route_unevenly(model: torch.nn.Module) -> None:
    """Each rank's tokens to experts of its own, of which the other rank has none."""
    first = 2 * int(os.environ["RANK"])

    def to_own(_module: Any, _inputs: Any, output: Any) -> Any:
        logits, scores, chosen = output
        return logits, scores, (first + torch.arange(chosen.size(-1))).expand_as(chosen)

    routers = [one for one in model.modules() if type(one).__name__.endswith("TopKRouter")]
    assert routers
    for router in routers:
        router.register_forward_hook(to_own)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
