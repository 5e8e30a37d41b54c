"""One of the ranks of a run in which rank 1 alone meets numbers that are not finite: the loss of
global step 2, a gradient of step 3, and at the end a reward. Run by test_bad_steps.py.
"""

import json
import math
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_stream.errors import RewardError
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.batches.finite_rewards import check_finite
from grpo_stream.train.cluster.process_group import leave_process_group, start_process_group
from grpo_stream.train.models.processor import load_processor, resize_rule
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.runs import spread_reward

NUM_STEPS = 4
WORLD = World.from_env()
IS_SPOILT = WORLD.rank == WORLD.world_size - 1


class Weights(TrainerCallback):
    """A sum of this rank's weights, or its share of them, at the start and after each step."""

    def __init__(self, model):
        self.model, self.sums, self.global_step = model, [], 0
        self.are_finite = True

    def look(self):
        own = [getattr(p, "ds_tensor", p).detach().double() for p in self.model.parameters()]
        self.sums.append(sum(float((w * w).sum()) for w in own))
        self.are_finite = all(bool(w.isfinite().all()) for w in own)

    def on_train_begin(self, *_, **__):
        self.look()

    def on_step_begin(self, args, state, *_, **__):
        self.global_step = state.global_step + 1

    def on_step_end(self, *_, **__):
        self.look()


class Spoilt(PersonalizedGRPOTrainer):
    def _compute_loss(self, model, inputs):
        upstream = GRPOTrainer._compute_loss
        value = math.inf if IS_SPOILT and self.state.global_step + 1 == 2 else 1.0
        GRPOTrainer._compute_loss = lambda *given: upstream(*given) * value
        try:
            return super()._compute_loss(model, inputs)
        finally:
            GRPOTrainer._compute_loss = upstream


def zero(stage, *, sums_in_float32):
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings = dict.fromkeys(auto, "auto")
    precisions = {name: {"enabled": "auto"} for name in ("bf16", "fp16")}
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if sums_in_float32 else {}
    return settings | precisions | sums | {"zero_optimization": {"stage": stage}}


def sums_of(trainer):
    """Type in which DeepSpeed adds up gradients, of stage 1 on."""
    optimizer = getattr(trainer.model_wrapped, "optimizer", None)
    return getattr(optimizer, "gradient_accumulation_dtype", None)


def share_of(trainer):
    """A rank's share of the weights, and the bytes of its gradients' sums, under stage 3."""
    weights = list(trainer.model.parameters())
    if not hasattr(weights[0], "ds_tensor"):
        return {}
    optimizer = trainer.model_wrapped.optimizer
    return {
        "num_weights": sum(one.ds_tensor.numel() for one in weights),
        "gradient_bytes": optimizer.grad_partitions_flat_buffer.nbytes,
    }


def main(policy, shards, out, stage, precision):
    start_process_group(use_cpu=True)
    processor = load_processor(policy, max_pixels=112 * 112)
    rule = resize_rule(processor.image_processor)
    config = StreamConfig(num_lanes=2 * WORLD.world_size, num_reader_threads=1, resize=rule)
    args = GRPOConfig(
        str(out),
        use_cpu=True,
        bf16="bf16" in precision,
        report_to=[],
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
        deepspeed=None
        if stage == "none"
        else zero(int(stage), sums_in_float32="sums" in precision),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_generations=2,
        max_completion_length=4,
        learning_rate=1e-2,
        max_steps=NUM_STEPS,
    )
    stream = PromptStream(ShardSource(shards), config, WORLD)
    trainer = Spoilt(str(policy), spread_reward, args, stream, processing_class=processor)
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = Weights(model)
    trainer.add_callback(weights)

    def spoil(gradient):
        return gradient * math.nan if IS_SPOILT and weights.global_step == 3 else gradient

    def spoil_backward(_module, _inputs, output):
        if output.requires_grad:
            output.register_hook(spoil)

    model.model.language_model.norm.register_forward_hook(spoil_backward)
    trainer.train()
    rewards = torch.ones(2 * WORLD.world_size, 1)
    rewards[-1] = math.inf
    try:
        check_finite(rewards, ["its"], torch.ones(1), [f"a{WORLD.rank}", f"b{WORLD.rank}"])
    except RewardError as error:
        told = str(error)
    seen = {
        "num_bad": trainer._observer.bad_steps.num,
        "are_finite": weights.are_finite,
        "is_kept": [a == b for a, b in zip(weights.sums, weights.sums[1:], strict=False)],
        "rates": [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e],
        "reward": told,
        "sums": str(sums_of(trainer)),
        **share_of(trainer),
    }
    Path(out, f"rank-{WORLD.rank}.json").write_text(json.dumps(seen))
    leave_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
