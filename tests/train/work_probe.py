"""A short training run that counts the work on every prompt; alone, or as one rank of several."""

import json
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from trl import GRPOConfig

from grpo_stream.images import decode, resize
from grpo_stream.shards.index import ShardIndex
from grpo_stream.storage.store import LocalStore
from grpo_stream.stream import stream_sample
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.models.processor import load_processor, resize_rule
from grpo_stream.train.setup.arguments import LogArguments
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.runs import spread_reward
from tests.train.support import QUIET

NUM_GENERATIONS, STEPS_PER_GENERATION, NUM_ITERATIONS = 8, 4, 2
NUM_BATCHES = 2  # generation batches of the run; a rank has 4 prompts in each
MAX_PIXELS = 56 * 56  # of images of 112 x 112: all are resized


class Work:
    """What was done, by the bytes it was done to."""

    def __init__(self):
        self.ranges: list[tuple[str, int, int]] = []
        self.decoded: Counter[int] = Counter()
        self.resized: Counter[int] = Counter()
        self.tower_rows: dict[str, Counter[int]] = {
            phase: Counter() for phase in ("rollout", "old", "update")
        }
        self._is_sampling = False

    def store(self, folder):
        work = self

        class CountingStore(LocalStore):
            def read_range(self, name, offset, num_bytes):
                work.ranges.append((name, offset, num_bytes))
                return super().read_range(name, offset, num_bytes)

        return CountingStore(folder)

    @contextmanager
    def counted(self):
        """Counts decodes and resizes of the stream."""

        def counting(counter, function):
            def counted(data, *args):
                counter[hash(bytes(data))] += 1
                return function(data, *args)

            return counted

        with (
            mock.patch.object(stream_sample, "decode", counting(self.decoded, decode)),
            mock.patch.object(stream_sample, "resize", counting(self.resized, resize)),
        ):
            yield

    def watch(self, trainer):
        generate = trainer._generate_single_turn

        def sampled(*args, **kwargs):
            self._is_sampling = True
            try:
                return generate(*args, **kwargs)
            finally:
                self._is_sampling = False

        def looked(module, args, kwargs):
            pixels, grid = [*args, *kwargs.values()][:2]
            phase = "update" if torch.is_grad_enabled() else "old"
            images = pixels.split(grid.prod(-1).tolist())
            rows = [hash(image.float().numpy().tobytes()) for image in images]
            self.tower_rows["rollout" if self._is_sampling else phase].update(rows)

        trainer._generate_single_turn = sampled
        tower = trainer.accelerator.unwrap_model(trainer.model).model.visual
        tower.register_forward_pre_hook(looked, with_kwargs=True)

    def counts(self, source):
        """How often each thing was done to each sample; one entry a sample that was touched."""
        fetched: Counter[str] = Counter()
        for shard in source.manifest.shards:
            index = ShardIndex.load(source._store, shard)
            for number in range(shard.num_samples):
                entry = index[number]
                end = entry.offset + entry.num_bytes
                times = sum(
                    name == shard.name and start <= entry.offset and end <= start + size
                    for name, start, size in self.ranges
                )
                if times:
                    fetched[f"{shard.name} {number}"] = times
        done: dict[str, Counter[Any]]
        done = {"fetched": fetched, "decoded": self.decoded, "resized": self.resized}
        done |= {f"tower rows, {phase}": rows for phase, rows in self.tower_rows.items()}
        return {name: sorted(times.values()) for name, times in done.items()}


def run(policy, shards, out, world=None, **changes):
    """Trains; what was done to each sample that this rank touched, and the log."""
    work, world = Work(), world or World()
    processor = load_processor(policy, max_pixels=MAX_PIXELS)
    num_lanes = world.world_size * STEPS_PER_GENERATION
    config = StreamConfig(
        num_lanes=num_lanes, num_reader_threads=2, resize=resize_rule(processor.image_processor)
    )
    source = ShardSource(work.store(shards))
    with work.counted():
        trainer = PersonalizedGRPOTrainer(
            str(policy),
            spread_reward,
            settings(out, **changes),
            PromptStream(source, config, world),
            processing_class=processor,
            shared_prefix="on",
            shared_prefix_check=False,  # which would be counted, too
            log=LogArguments(logp_difference_steps=0),  # the same
        )
        work.watch(trainer)
        trainer.train()
        trainer.close()
    return work.counts(source), trainer.state.log_history


def settings(out, **changes):
    same = {
        **QUIET,
        "per_device_train_batch_size": NUM_GENERATIONS,
        "num_generations": NUM_GENERATIONS,
        "steps_per_generation": STEPS_PER_GENERATION,
        "num_iterations": NUM_ITERATIONS,
        "gradient_accumulation_steps": STEPS_PER_GENERATION,
        "max_steps": NUM_BATCHES * NUM_ITERATIONS,
        "max_completion_length": 2,
    }
    return GRPOConfig(str(out), **same | changes)


def main(policy, shards, out):
    """One rank under DeepSpeed ZeRO-3; writes its counts."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)  # before the model is loaded
    world = World.from_env()
    counts, log = run(
        policy,
        shards,
        out,
        world,
        deepspeed="ds_configs/zero3_cpu.json",
        beta=0.1,
        learning_rate=1e-3,
        logging_steps=1,
        sync_ref_model=True,
        ref_model_sync_steps=NUM_ITERATIONS,
        ref_model_mixup_alpha=1.0,
    )
    seen = {"counts": counts, "kl": [entry["kl"] for entry in log if "kl" in entry]}
    Path(out, f"rank-{world.rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()  # a rank that just leaves keeps the others waiting


if __name__ == "__main__":
    main(*sys.argv[1:])
