"""Two ranks over gloo; the third batch of rank 1 never comes. Run by test_stall.py."""

import sys
import threading
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.batches.synced_reader import SyncedReader
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.observe.watchdog import Watchdog

LIMIT_SECONDS = 2.0


def main(shards, folder):
    PartialState(cpu=True)
    world = World.from_env()
    stream = PromptStream(
        ShardSource(shards), StreamConfig(num_lanes=4, num_reader_threads=1, resize=None), world
    )
    if world.rank == 1:
        stall_third_batch(stream)
    phases = Phases()
    watchdog = Watchdog(
        phases,
        step_timeout_seconds=LIMIT_SECONDS,
        folder=Path(folder),
        rank=world.rank,
        world_size=world.world_size,
        global_step=lambda: 0,
        in_use=lambda _: phases.keys,
    )
    with PromptLoader(stream, list) as loader:
        reader = SyncedReader(loader)
        watchdog.start()
        for batch_index in range(stream.num_batches):
            with phases("data_wait"):
                samples = reader.get(0, batch_index)
            phases.keys = [sample.key for sample in samples]
            with phases("rollout"):
                gather_object(phases.keys)
    raise AssertionError("nothing stalled")


def stall_third_batch(stream):
    attempt = stream.attempt

    def stalled(one, *args):
        if one.batch_index == 2:
            threading.Event().wait()
        return attempt(one, *args)

    stream.attempt = stalled


if __name__ == "__main__":
    main(*sys.argv[1:])
