"""Blocks of ``gpu_check``: ``python -m benchmarks.gpu.gpu_blocks NAME MODEL``, one a process.

Each notes its figures one by one (:meth:`~benchmarks.gpu.gpu_bench.Bench.note`), so that what fails
or takes too long leaves the others.
"""

import importlib.metadata
import os
import sys
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.deep_policy import make_groups
from benchmarks.gpu.device_rates import (
    bytes_a_second,
    operations_a_second,
    operations_of_micro_step,
)
from benchmarks.gpu.expectations import OF_ATTENTION_AND_PATCHES
from benchmarks.gpu.gpu_bench import Bench
from benchmarks.gpu.rollout_block import rollout
from benchmarks.gpu.training_blocks import bad_step, batch_of, memory, steps
from grpo_stream.train.models.cuda_settings import prepare_cuda
from grpo_stream.train.models.vision_attention import batch_windows
from grpo_stream.train.models.zero_leaves import leaf_layers
from grpo_stream.train.prefix.log_sums import gives_log_sums
from grpo_stream.train.prefix.ways import PLAIN
from grpo_stream.train.setup.memory.model_sizes import MetaModel

_PACKAGES = ("torch", "triton", "transformers", "trl", "deepspeed", "flash_attn")


def environment(bench: Bench) -> None:
    """Versions, what was set, and what the device does at most."""
    bench.note("python", sys.version.partition(" ")[0])
    for name in _PACKAGES:
        bench.note(name, _version_of(name))
    bench.note("device", torch.cuda.get_device_name() if bench.is_cuda else "cpu")
    bench.note("cuda", torch.version.cuda)
    is_on = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    bench.note("cudnn_attention", is_on)
    if bench.is_cuda:
        version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        bench.note("nccl", ".".join(str(part) for part in version))
        bench.note("capability", list(torch.cuda.get_device_capability()))
        bench.note("gigabytes", torch.cuda.get_device_properties(0).total_memory / 1e9)
        bench.attempt("allocator", _allocator_settings)
    bench.attempt("bytes_a_second", partial(bytes_a_second, bench))
    bench.attempt("operations_a_second", partial(operations_a_second, bench))


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _allocator_settings() -> dict[str, str]:
    torch.zeros(1, device="cuda")
    settings = torch.cuda.memory._snapshot()["allocator_settings"]  # noqa: SLF001
    return {name: str(value) for name, value in settings.items()}


def kernels(bench: Bench) -> None:
    """Names of what attends and cuts patches, forward and backward."""
    model = bench.policy()
    states = torch.zeros(1, 1, 1, 128, device=bench.device, dtype=torch.bfloat16)
    bench.attempt("log_sums", partial(gives_log_sums, states, states))
    bench.attempt("kernels", partial(_kernel_names, bench, model))


def _kernel_names(bench: Bench, model: Any) -> dict[str, int]:
    bench.train_step(model)
    activities = [ProfilerActivity.CPU]
    if bench.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        bench.train_step(model)
        bench.wait()  # for kernels that are still to run
    device = DeviceType.CUDA if bench.is_cuda else DeviceType.CPU
    return {
        event.key: event.count
        for event in profiler.key_averages()
        if event.device_type == device
        and any(word in event.key.lower() for word in OF_ATTENTION_AND_PATCHES)
    }


def exactness(bench: Bench) -> None:
    """Errors of log-probabilities in bfloat16, from plain rows in float32."""
    torch.backends.cudnn.allow_tf32 = False  # which is torch's default for convolutions
    with torch.no_grad():
        exact = bench.score(bench.policy(torch.float32, is_ours=False), PLAIN)

        def error(way: Any, dtype: torch.dtype, *, is_ours: bool, largest: bool = False) -> float:
            own = bench.score(bench.policy(dtype, is_ours=is_ours), way)
            distance = (own.float() - exact).abs()
            return float(distance.max() if largest else distance.mean())

        half, full = torch.bfloat16, torch.float32
        bench.attempt("plain_error", partial(error, PLAIN, half, is_ours=False))
        bench.attempt("packed_error", partial(error, bench.packed, half, is_ours=True))
        packed = partial(error, bench.packed, full, is_ours=True, largest=True)
        bench.attempt("packed_float32_error", packed)


def tower(bench: Bench) -> None:
    """The vision tower, forward and backward: transformers' own, windows together, flash."""
    features: dict[str, torch.Tensor] = {}

    def measure(name: str, wanted: str | None) -> float:
        model = bench.policy(is_ours=False)
        if wanted is not None:
            batch_windows(model, wanted)
        media = make_groups(model, 1, bench.num_generations, bench.grid).media[0]
        encode = partial(_encode, model.model.visual, media)
        features[name] = encode().float()
        return bench.seconds(encode)

    for name, wanted in (("stock", None), ("batched", "auto"), ("flash", "flash_attention_2")):
        bench.attempt(name, partial(measure, name, wanted))
        if name != "stock" and name in features and "stock" in features:
            distance = (features[name] - features["stock"]).norm() / features["stock"].norm()
            bench.note(f"{name}_difference", float(distance))


def _encode(visual: Any, media: Any) -> torch.Tensor:
    features: torch.Tensor = visual(media["pixel_values"], media["image_grid_thw"]).pooler_output
    features.float().sum().backward()  # type: ignore[no-untyped-call]
    return features.detach()


def micro_step(bench: Bench) -> None:
    """Seconds of a micro-step: groups, and checkpointing; the arithmetic's beside them."""
    model, counted = bench.policy().train(), MetaModel(bench.config)
    rate = operations_a_second(bench)
    bench.note("operations_a_second", rate)

    def measure(num_groups: int) -> dict[str, float]:
        batch = batch_of(bench, model, num_groups)
        work = operations_of_micro_step(counted, batch, checkpointing=checkpointing)
        seconds = bench.seconds(partial(bench.train_step, model, num_groups), times=2)
        return {"seconds": seconds, "arithmetic": work / rate}

    for checkpointing in (True, False):
        bench.set_checkpointing(model, is_wanted=checkpointing)
        for num_groups in (1, 4):
            name = f"{num_groups} groups{', checkpointing' if checkpointing else ''}"
            bench.attempt(name, partial(measure, num_groups))


def zero(bench: Bench) -> None:
    """Seconds of forward and backward of one group: plain, stage 3, its leaf modules, stage 2."""
    import deepspeed  # noqa: PLC0415 - slow to import

    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT="0")
    deepspeed.init_distributed("nccl" if bench.is_cuda else "gloo", verbose=False)
    for name, stage in (("plain", 0), ("stage 3", 3), ("stage 3, leaves", 3), ("stage 2", 2)):
        bench.attempt(name, partial(_seconds_of_stage, bench, stage, has_leaves="leaves" in name))


def _seconds_of_stage(bench: Bench, stage: int, *, has_leaves: bool) -> float:
    model = bench.policy(torch.bfloat16 if bench.is_cuda else torch.float32).train()
    if not stage:
        return bench.seconds(partial(bench.train_step, model))
    engine = _engine(model, stage, has_leaves=has_leaves)
    try:
        return bench.seconds(partial(_engine_step, bench, engine))
    finally:
        engine.destroy()


def _engine_step(bench: Bench, engine: Any) -> None:
    engine.backward(bench.score(engine, bench.packed).sum())
    engine.step()


def _engine(model: Any, stage: int, *, has_leaves: bool) -> Any:
    import deepspeed  # noqa: PLC0415

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": model.dtype == torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    weights = list(model.parameters())
    with leaf_layers(model, is_wanted=has_leaves):
        return deepspeed.initialize(
            model=model, optimizer=torch.optim.SGD(weights, lr=0.0), config=config
        )[0]


BLOCKS = (
    environment, kernels, exactness, tower, micro_step, memory, zero, bad_step, steps, rollout
)  # fmt: skip


def main(name: str, model: str) -> None:
    """Runs a block."""
    prepare_cuda()
    (block,) = (one for one in BLOCKS if one.__name__ == name)
    block(Bench(model))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
