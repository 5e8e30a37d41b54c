"""One of two ranks under ZeRO-3 that counts every call of every module; run by test_step_calls.py.

Samples have one image of any size, two or none; rank 1 ends its completions early, half of its
groups teach nothing and are replaced, and its third generation batch gets no rewards.
"""

import json
import sys
import threading
from collections import Counter
from pathlib import Path

import deepspeed
from transformers import TrainerCallback
from trl import GRPOConfig

from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.models.processor import load_processor, resize_rule
from grpo_stream.train.setup.arguments import LogArguments
from grpo_stream.train.trainer import PersonalizedGRPOTrainer

NUM_STEPS = 2
"""Global steps that are counted; the next one stalls."""
LIMIT_SECONDS = 20.0
"""More than a step takes on a machine that has other work, too."""


class Calls(TrainerCallback):
    """Calls of each module by stage, and what this rank saw."""

    def __init__(self, trainer, path):
        self.trainer, self.path = trainer, path
        self.counts: Counter[str] = Counter()
        self.lengths: list[int] = []
        models = {
            "policy": trainer.accelerator.unwrap_model(trainer.model),
            "reference": trainer.accelerator.unwrap_model(trainer.ref_model),
        }
        for model_name, model in models.items():
            for name, module in model.named_modules():
                module.register_forward_pre_hook(self.counting(f"{model_name}.{name}"))

    def counting(self, name):
        def count(*_):
            self.counts[f"{self.trainer.phases.stage.name}: {name}"] += 1

        return count

    def on_step_end(self, args, state, control, **_):
        if state.global_step == NUM_STEPS:
            seen = {"calls": self.counts, "lengths": self.lengths, "sizes": SIZES}
            self.path.write_text(json.dumps(seen))


SIZES: list[str] = []
ROLLOUTS: list[int] = []


def rewards_that_stall(completions, model_size, **_):
    """On rank 1 every other rollout is worth the same throughout; its fifth one never ends."""
    SIZES.extend(map(str, model_size[::2]))
    ROLLOUTS.append(len(completions))
    if World.from_env().rank == 1:
        if len(ROLLOUTS) > 2 * NUM_STEPS:
            threading.Event().wait()
        if len(ROLLOUTS) % 2 == 1:
            return [1.0] * len(completions)
    return [float(number % 2) for number in range(len(completions))]


def main(policy, shards, out):
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    world = World.from_env()
    processor = load_processor(policy, max_pixels=112 * 112)
    config = StreamConfig(
        num_lanes=8, num_reader_threads=1, resize=resize_rule(processor.image_processor)
    )
    args = GRPOConfig(
        str(out),
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
        deepspeed="ds_configs/zero3_cpu.json",
        # Each call of a module gathers its weights: ranks that call unequally often would hang.
        ds3_gather_for_generation=False,
        per_device_train_batch_size=2,
        steps_per_generation=2,
        gradient_accumulation_steps=2,
        num_generations=2,
        max_completion_length=8,
        max_steps=NUM_STEPS + 1,
        beta=0.1,
    )
    trainer = PersonalizedGRPOTrainer(
        str(policy),
        rewards_that_stall,
        args,
        PromptStream(ShardSource(shards), config, world),
        processing_class=processor,
        refill_zero_variance=1,
        log=LogArguments(step_timeout_seconds=LIMIT_SECONDS, logp_difference_steps=0),
    )
    if world.rank == 1:  # most words end its completions
        num_tokens = len(processor.tokenizer)
        ending = list(range(num_tokens // 4, num_tokens))
        trainer.generation_config.eos_token_id = trainer.eos_token_ids = ending
    calls = Calls(trainer, Path(out, f"rank-{world.rank}.json"))
    generate = trainer._generate_single_turn

    def noted(*args, **kwargs):
        sampled = generate(*args, **kwargs)
        calls.lengths.append(max(map(len, sampled[0])))
        return sampled

    setattr(trainer, "_generate_single_turn", noted)  # noqa: B010 - a method, to mypy
    trainer.add_callback(calls)
    trainer.train()
    raise AssertionError("nothing stalled")


if __name__ == "__main__":
    main(*sys.argv[1:])
