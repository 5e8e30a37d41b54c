"""Two ranks over gloo that read a data set in step; run once per rank by test_read_together.py.

Writes the error that ended it, and the number of generation batches before it.
"""

import json
import sys
from pathlib import Path

from accelerate import PartialState

from grpo_stream.errors import GrpoStreamError
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.batches.synced_reader import SyncedReader


def main(shards, out, max_bad_samples):
    PartialState(cpu=True)
    world = World.from_env()
    config = StreamConfig(
        num_lanes=4, num_reader_threads=1, resize=None, max_bad_samples=int(max_bad_samples)
    )
    stream = PromptStream(ShardSource(shards), config, world)
    num_read = 0
    seen: dict[str, object] = {}
    with PromptLoader(stream, list) as loader:
        reader = SyncedReader(loader)
        try:
            for batch_index in range(stream.num_batches):
                reader.get(0, batch_index)
                num_read += 1
        except GrpoStreamError as error:
            seen["error"] = f"{type(error).__name__}: {error}"
    seen |= {"num_read": num_read, "quarantine": list(reader.bad_samples.quarantine)}
    seen["own"] = list(stream.counters.quarantine)
    Path(out).write_text(json.dumps(seen))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
