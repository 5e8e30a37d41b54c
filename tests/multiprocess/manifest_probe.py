"""Opens a data set as one of two ranks of a node; run once per rank by test_node_manifests.py."""

import json
import sys
from pathlib import Path

from accelerate import PartialState

from grpo_stream.errors import GrpoStreamError
from grpo_stream.train.setup.arguments import DataArguments
from grpo_stream.train.setup.open_data import open_sources

NUM_LOADINGS = 20


def main(url, missing, out):
    PartialState(cpu=True)
    digests = {  # once would not show whether the groups of two loadings get in each other's way
        open_sources(DataArguments(shards=[url])).sources[0].digest for _ in range(NUM_LOADINGS)
    }
    seen = {"digest": digests.pop()}
    try:
        open_sources(DataArguments(shards=[missing]))
    except GrpoStreamError as error:
        seen["error"] = f"{type(error).__name__}: {error}"
    Path(out).write_text(json.dumps(seen))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
