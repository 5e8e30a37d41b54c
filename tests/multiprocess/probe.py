"""launch/train.py with a look inside: run by the DeepSpeed launcher, one process per rank.

Every rank writes what it saw to ``PROBE_DIR/rank-N.json``.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from grpo_stream.grounding.rewards import accuracy_reward_coord
from grpo_stream.train.cluster.early_end import end_process
from grpo_stream.train.cluster.process_group import leave_process_group, start_process_group
from grpo_stream.train.setup import run_plan
from tests.launch.support import load_script

KEYS: list[list[str]] = []
SIZES: list[list[int]] = []
SCALES: list[list[int]] = []
VIEWS: list[list[int]] = []


def spying_reward(**columns):
    """The ordinary reward; notes which groups this rank scores."""
    KEYS.append(columns["key"])
    SIZES.extend(columns["model_size"])
    SCALES.extend(columns["scales"])
    VIEWS.append(columns.get("view", []))
    return accuracy_reward_coord(**columns)


def spread_reward(**columns):
    """Of the text alone, so that groups teach whatever a new policy says; notes the same."""
    spying_reward(**columns)
    return [sum(map(ord, str(text))) % 5 / 4 for text in columns["completions"]]


def main():
    launch = load_script("train")
    use_cpu = run_plan.use_cpu_only()
    start_process_group(use_cpu=use_cpu)
    settings = run_plan.parse_settings(sys.argv[1:], use_cpu=use_cpu)
    trainer = launch.train(settings, run_plan.plan_run(settings))
    engine = trainer.model_wrapped
    weights = dict(engine.module.named_parameters())
    weight = weights["model.language_model.layers.0.mlp.gate_proj.weight"]
    seen = {
        "engine": type(engine).__name__,
        "zero_stage": engine.zero_optimization_stage(),
        "weight_shape": list(weight.shape),
        "weight_elements_here": weight.ds_tensor.numel(),
        "weight_elements": weight.ds_numel,
        "keys": KEYS,
        "sizes": SIZES,
        "scales": SCALES,
        "views": VIEWS,
        "counted_samples": trainer.train_stream.counters.num_samples,
        "shared_prefix": trainer.shared_prefix,
    }
    path = Path(os.environ["PROBE_DIR"]) / f"rank-{os.environ['RANK']}.json"
    path.write_text(json.dumps(seen))
    leave_process_group()


if __name__ == "__main__":
    # trl finds the reward under the module's own name; there must be one KEYS, not two.
    importlib.import_module("tests.multiprocess.probe").main()
    end_process(0)
