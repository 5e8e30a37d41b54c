"""From a run's settings to what its preflight checks."""

from dataclasses import replace
from typing import Any

from grpo_stream.errors import ConfigError
from grpo_stream.stream.open_shards import parse_shards
from grpo_stream.train.cluster.preflight import RunChecks
from grpo_stream.train.cluster.preflight_report import Needs
from grpo_stream.train.cluster.same_settings import run_settings
from grpo_stream.train.setup.accelerate_launch import deepspeed_config_of, precision_of
from grpo_stream.train.setup.deepspeed_config import sums_in_float32
from grpo_stream.train.setup.memory.memory_estimate import Zero, state_memory
from grpo_stream.train.setup.memory.model_sizes import MetaModel, find_config
from grpo_stream.train.setup.run_plan import Settings
from grpo_stream.train.supervised.supervised_plan import SupervisedSettings


def run_checks(settings: Settings | SupervisedSettings) -> RunChecks:
    """What is the same everywhere, and what each node must have and reach.

    Raises:
        ConfigError: ``shards`` or ``eval_shards`` name no data set, or weights that are none.
    """
    data = settings.data
    urls = parse_shards(data.shards)[0] if data.shards else []
    urls += parse_shards(data.eval_shards)[0] if data.eval_shards else []
    compared = run_settings(settings)
    compared["deepspeed"] = compared["deepspeed"] or deepspeed_config_of(settings.args)
    return RunChecks(
        settings=compared,
        urls=list(dict.fromkeys(urls)),
        output_dir=str(settings.args.output_dir),
        cache_dir=data.cache_dir,
        needs=find_needs(settings, compared["deepspeed"]),
    )


def find_needs(settings: Settings | SupervisedSettings, deepspeed: dict[str, Any] | None) -> Needs:
    """What weights, gradients and optimizer take at least, and one checkpoint of them.

    Known of any model whose configuration is at hand, under ZeRO-3 with all weights trained, else
    0: a lower bound, which never refuses a run that would have worked.

    Args:
        settings: The run's.
        deepspeed: Content of its DeepSpeed file.
    """
    zero = (deepspeed or {}).get("zero_optimization", {})
    if zero.get("stage") != 3 or settings.model.use_peft:
        return Needs()
    if any(_is_offloaded(zero, f"offload_{what}", "nvme") for what in ("optimizer", "param")):
        return Needs()  # a disk that preflight does not look at
    try:
        model = MetaModel(find_config(str(settings.model.model_name_or_path)))
    except (ConfigError, ValueError, OSError):
        return Needs()
    args = settings.args
    cut = Zero(
        num_ranks=args.world_size,
        offload_optimizer=_is_offloaded(zero, "offload_optimizer", "cpu"),
        offload_param=_is_offloaded(zero, "offload_param", "cpu"),
        element_bytes=4 if precision_of(args) == "float32" else 2,
        gradient_bytes=4 if sums_in_float32(deepspeed or {}) else None,
        with_reference=bool(getattr(args, "beta", 0)),  # supervised training has none
    )
    found = state_memory(model.num_weights, cut)
    on_cpu = bool(args.use_cpu)
    return Needs(
        gpu_per_rank=0 if on_cpu else found.states,
        host_per_rank=found.states + found.host if on_cpu else found.host,
        output_per_rank=_checkpoint_share(
            model.num_weights, cut, is_model_only=args.save_only_model
        ),
    )


def _checkpoint_share(num_weights: int, cut: Zero, *, is_model_only: bool) -> int:
    weights = -(-cut.element_bytes * num_weights // cut.num_ranks)
    optimizer = state_memory(num_weights, replace(cut, offload_optimizer=False)).optimizer
    return weights if is_model_only else weights + optimizer


def _is_offloaded(zero: dict[str, Any], name: str, device: str) -> bool:
    return bool((zero.get(name) or {}).get("device") == device)
