"""Two ranks over gloo, each as if on a node of its own; started once per rank by test_preflight.py.

Writes what each preflight said, and the error that it ended with.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from grpo_stream.storage.retrying_store import RetryRules
from grpo_stream.train.cluster import node_checks
from grpo_stream.train.cluster.preflight import RunChecks, run_preflight
from grpo_stream.train.cluster.preflight_report import Needs, PreflightError

SETTINGS = {"learning_rate": 1e-6, "reward_funcs": ["one"]}


def main(shards, out):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    node_checks.RULES = RetryRules(retry_deadline_seconds=0.5, stall_timeout_seconds=0.5)
    same = RunChecks(SETTINGS, [shards], out)
    file = Path(out) / "file"
    file.touch()
    cases = {
        "good": same,
        "store": replace(same, urls=["http://127.0.0.1:9/bucket/set"]),
        "setting": replace(same, settings=SETTINGS | {"learning_rate": 2e-6}),
        "disk": replace(same, needs=Needs(output_per_rank=10**18)),
        "output": replace(same, output_dir=str(file)),
    }
    seen: dict[str, dict[str, object]] = {}
    for name, of_second in cases.items():
        # Needs are judged by rank 0; all else is what rank 1 finds.
        checks = of_second if rank == 1 or name == "disk" else same
        seen[name] = ended(checks, name)
    # Rank 1 says nothing in time.
    if rank == 1:
        time.sleep(1.5)
    seen["silent"] = ended(same, "silent", wait_seconds=1.0)
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def ended(checks, name, **more):
    said: list[str] = []
    started = time.perf_counter()
    error = None
    try:
        run_preflight(checks, say=said.append, name=name, **more)
    except PreflightError as caught:
        error = str(caught)
    return {"said": said, "error": error, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    os.environ["LOCAL_RANK"] = "0"
    main(*sys.argv[1:])
