"""Estimates a rank's GPU memory under ZeRO-3, for models and numbers of GPUs.

    python launch/estimate.py
    python launch/estimate.py --models 72B --gpus 64 128 --offload optimizer --image-tokens 2691
    python launch/estimate.py --models out/my_model Qwen/Qwen3-VL-8B-Instruct --gpus 8 --json

A model is a name (3B, 7B, 32B, 72B: Qwen2.5-VL), a folder that needs to hold no more than its
config.json, or a hub id. What is left out: grpo_stream/train/setup/memory/memory_estimate.py.
Gigabytes are 10^9 bytes.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from grpo_stream.errors import GrpoStreamError
from grpo_stream.flags import with_dashes
from grpo_stream.train.batches.view_batches import check_view_settings
from grpo_stream.train.setup.memory.group_memory import Batch, group_memory
from grpo_stream.train.setup.memory.memory_estimate import MemoryEstimate, Zero, estimate
from grpo_stream.train.setup.memory.model_sizes import SIZE_NAMES, MetaModel, find_config

_COLUMNS = (
    "states", "update", "rollout", "layerwise", "engine", "freed", "host", "DeepSpeed", "layout",
    "fits",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Prints the table; returns the process's exit code (0 done, 2 settings that cannot work)."""
    args = parse(argv)
    try:
        models = {name: MetaModel(find_config(name)) for name in args.models}
        rows = [row(args, name, gpus, models[name]) for name in models for gpus in args.gpus]
    except GrpoStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(rows))
        return 0
    batch = batch_of(args)
    print(
        f"GB of each GPU; prompts of {batch.prompt_tokens:,} tokens, {batch.image_tokens:,} of "
        f"them visual, with {batch.num_generations} completions of {batch.completion_tokens}: "
        f"{batch.groups_per_micro_step} a micro-step, {batch.prompts_per_rollout} a rollout; "
        f"offload: {args.offload}; gradient checkpointing: "
        f"{'off' if args.no_gradient_checkpointing else 'on'}; gradients: {args.grad_accum_dtype}"
    )
    width = max(8, *(len(name) + 1 for name in models))
    print(f"{'model':<{width}}{'GPUs':>6}" + "".join(f"{name:>11}" for name in _COLUMNS))
    for one in rows:
        cells = [one[name] for name in _COLUMNS]
        texts = [f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in cells]
        print(f"{one['model']:<{width}}{one['gpus']:>6}" + "".join(f"{text:>11}" for text in texts))
    print(_LEGEND.format(args.gpu_gb))
    return 0


_LEGEND = """\
states     weights, gradients, optimizer: there all the time
update     peak of a micro-step; rollout: of sampling, with the whole model gathered on each GPU;
layerwise  of sampling with --ds3_gather_for_generation false: layer by layer, slower
engine     of it, what a colocated vLLM has (--vllm-gpu-memory-utilization), its weights included
freed      of that, while the policy is updated (--vllm-enable-sleep-mode)
host       gigabytes of a node's memory for each GPU; DeepSpeed: its own estimate of the states,
           which knows nothing of fp32 gradients
layout     packed, forked: a prompt is computed once for its completions; plain: for each of them
fits       which of them leave 2 GB of {:g} for CUDA and NCCL: both, layerwise, no"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, Batch()
    add("--models", nargs="+", default=list(SIZE_NAMES), help="(%(default)s)")
    add("--gpus", nargs="+", type=int, default=[8, 16, 32, 64, 128], help="(8 16 32 64 128)")
    add("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    add("--gpu-gb", type=float, default=80.0, help="memory of a GPU (%(default)s)")
    add("--offload", choices=("none", "optimizer", "all"), default="none", help="(%(default)s)")
    add("--no-gradient-checkpointing", action="store_true")
    add(
        "--grad-accum-dtype",
        choices=("bf16", "fp32"),
        default="bf16",
        help="DeepSpeed's data_types.grad_accum_dtype: fp32 as in ds_configs/"
        "zero3_float32_sums.json (%(default)s)",
    )
    add("--with-reference", action="store_true", help="a reference model (beta above 0)")
    add("--vllm-gpu-memory-utilization", type=float, default=0.0, help="trl's; 0: no engine")
    add("--vllm-enable-sleep-mode", action="store_true", help="trl's: none of it in an update")
    add("--vllm-tensor-parallel-size", type=int, default=1, help="trl's (%(default)s)")
    for name, value in vars(default).items():
        add(f"--{name.replace('_', '-')}", type=int, default=value, help="(%(default)s)")
    add("--num-views", type=int, default=1, help="views of each prompt (%(default)s)")
    add("--json", action="store_true", help="all terms, in bytes")
    return parser.parse_args(with_dashes(argv))


def batch_of(args: argparse.Namespace) -> Batch:
    """The batch that the flags describe; each view is a prompt with its part of the completions.

    Raises:
        ConfigError: ``num_views`` cannot work.
    """
    batch = Batch(**{name: getattr(args, name) for name in vars(Batch())})
    views = args.num_views
    check_view_settings(views, batch.num_generations)
    return replace(
        batch,
        num_generations=batch.num_generations // views,
        groups_per_micro_step=batch.groups_per_micro_step * views,
        prompts_per_rollout=batch.prompts_per_rollout * views,
    )


def row(args: argparse.Namespace, name: str, gpus: int, model: MetaModel) -> dict[str, Any]:
    """One line of the table, and all terms in bytes."""
    zero = {
        "num_ranks": gpus,
        "offload_optimizer": args.offload != "none",
        "offload_param": args.offload == "all",
        "gradient_checkpointing": not args.no_gradient_checkpointing,
        "gradient_bytes": 4 if args.grad_accum_dtype == "fp32" else None,
        "with_reference": args.with_reference,
        "engine_bytes": int(args.vllm_gpu_memory_utilization * args.gpu_gb * 1e9),
        "does_engine_sleep": args.vllm_enable_sleep_mode,
    }
    batch = batch_of(args)
    found = estimate(model, Zero(**zero), batch)
    layerwise = estimate(model, Zero(**zero, gather_for_generation=False), batch)
    room = (args.gpu_gb - 2) * 1e9
    fits = "both" if found.peak <= room else "layerwise" if layerwise.peak <= room else "no"
    weights = Zero(**zero).element_bytes * model.num_weights / args.vllm_tensor_parallel_size
    if found.vllm_engine and weights >= found.vllm_engine:
        fits = "no"
    return {
        "model": name,
        "gpus": gpus,
        **found.to_dict(),
        "weights_of_model": model.num_weights,
        "weights_of_parts": model.parts,
        **_gigabytes(found, layerwise),
        "DeepSpeed": deepspeed_states(model, gpus, args.gpus_per_node, args.offload) / 1e9,
        "layout": group_memory(model, batch, Zero(**zero).element_bytes).layout,
        "fits": fits,
    }


def deepspeed_states(model: MetaModel, gpus: int, gpus_per_node: int, offload: str) -> int:
    """Bytes of a GPU for the states, by DeepSpeed's estimate_zero3_model_states_mem_needs."""
    with contextlib.redirect_stdout(io.StringIO()):
        from deepspeed.runtime.zero.stage3 import (  # noqa: PLC0415 - seconds, not for --help
            estimate_zero3_model_states_mem_needs,
        )
    _, on_gpu, _ = estimate_zero3_model_states_mem_needs(
        model.num_weights,
        model.largest_module_weights,
        num_gpus_per_node=min(gpus, gpus_per_node),
        num_nodes=-(-gpus // gpus_per_node),
        cpu_offload=offload != "none",
        cpu_offload_params=offload == "all",
    )
    return int(on_gpu)


def _gigabytes(found: MemoryEstimate, layerwise: MemoryEstimate) -> dict[str, float]:
    return {
        "states": found.states / 1e9,
        "update": found.update_peak / 1e9,
        "rollout": found.rollout_peak / 1e9,
        "layerwise": layerwise.rollout_peak / 1e9,
        "engine": found.vllm_engine / 1e9,
        "freed": found.vllm_freed / 1e9,
        "host": found.host / 1e9,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
