"""Blocks of ``gpu_check``: ``python -m benchmarks.gpu.gpu_blocks NAME MODEL``, one a process."""

import json
import sys
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.deep_policy import make_groups
from benchmarks.gpu.gpu_bench import Bench, Figures
from benchmarks.gpu.launch_counts import sampling_config
from benchmarks.gpu.training_blocks import bad_step, memory, steps
from grpo_stream.errors import ConfigError
from grpo_stream.train.models.cuda_settings import (
    choose_attention_kernels,
    use_expandable_segments,
)
from grpo_stream.train.models.vision_attention import batch_windows
from grpo_stream.train.models.zero_leaves import leaf_layers
from grpo_stream.train.prefix.log_sums import gives_log_sums
from grpo_stream.train.prefix.ways import PLAIN

_BYTES_A_SECOND = 4.8e12  # an H200's memory; an H100's 3.35e12


def environment(bench: Bench) -> Figures:
    """Versions, and what was set."""
    found: Figures = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if bench.is_cuda else "cpu",
        "cuda": torch.version.cuda,
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
    }
    if bench.is_cuda:
        torch.zeros(1, device=bench.device)
        settings = torch.cuda.memory._snapshot()["allocator_settings"]  # noqa: SLF001
        found["allocator"] = {name: str(value) for name, value in settings.items()}
    return found


def kernels(bench: Bench) -> Figures:
    """Names of what attends and cuts patches, forward and backward."""
    model = bench.policy()
    states = torch.zeros(1, 1, 1, 128, device=bench.device, dtype=torch.bfloat16)
    log_sums = gives_log_sums(states, states)
    bench.train_step(model)
    activity = ProfilerActivity.CUDA if bench.is_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        bench.train_step(model)
    words = ("attention", "fmha", "flash", "cudnn", "conv3d", "convolution")
    names = {
        event.key: event.count
        for event in profiler.key_averages()
        if any(word in event.key.lower() for word in words)
    }
    return {"log_sums": log_sums, "kernels": names}


def exactness(bench: Bench) -> Figures:
    """Errors of log-probabilities in bfloat16, from plain rows in float32."""
    found = {}
    with torch.no_grad():
        exact = bench.score(bench.policy(torch.float32, is_ours=False), PLAIN)
        for name, way, is_ours in (("packed", bench.packed, True), ("plain", PLAIN, False)):
            own = bench.score(bench.policy(is_ours=is_ours), way)
            found[f"{name}_error"] = float((own.float() - exact).abs().mean())
        if not bench.is_cuda or bench.grid == (12, 20):
            packed = bench.score(bench.policy(torch.float32), bench.packed)
            found["packed_float32_error"] = float((packed - exact).abs().max())
    return found


def tower(bench: Bench) -> Figures:
    """The vision tower, forward and backward: transformers' own, windows together, flash."""
    found: Figures = {}
    features = {}
    for name, wanted in (("stock", None), ("batched", "auto"), ("flash", "flash_attention_2")):
        model = bench.policy(is_ours=False)
        try:
            if wanted is not None:
                batch_windows(model, wanted)
        except ConfigError as error:
            found[name] = str(error)
            continue
        media = make_groups(model, 1, 8, bench.grid).media[0]
        encode = partial(_encode, model.model.visual, media)
        features[name] = encode()
        found[name] = bench.seconds(encode)
    difference = (features["stock"] - features["batched"]).abs().max()
    return found | {"largest_difference": float(difference)}


def _encode(visual: Any, media: Any) -> torch.Tensor:
    features: torch.Tensor = visual(media["pixel_values"], media["image_grid_thw"]).pooler_output
    features.sum().backward()  # type: ignore[no-untyped-call]
    return features.detach()


def micro_step(bench: Bench) -> Figures:
    """Seconds of a micro-step: groups, and checkpointing."""
    found = {}
    model = bench.policy().train()
    for checkpointing in (True, False):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        for num_groups in (1, 4):
            name = f"{num_groups} groups{', checkpointing' if checkpointing else ''}"
            found[name] = bench.seconds(partial(bench.train_step, model, num_groups), times=2)
    return found


def rollout(bench: Bench) -> Figures:
    """Seconds of a token of 4 x 8 completions, beside what reading the weights once takes."""
    found = {}
    for name, way, is_ours in (("ours", bench.packed, True), ("generate", PLAIN, False)):
        model = bench.policy(is_ours=is_ours).eval()
        groups = make_groups(model, 4 if is_ours else 1, 8, bench.grid)
        sample = partial(way.sample, model, groups, pad_token_id=0)
        few, many = (
            bench.seconds(partial(sample, generation_config=sampling_config(number)), times=1)
            for number in (2, 18)
        )
        found[f"{name}, seconds_a_token"] = (many - few) / 16
        found[f"{name}, prompts"] = len(groups.prompt_ids)
        num_bytes = sum(one.numel() * one.element_size() for one in model.parameters())
    return found | {"reading_weights": num_bytes / _BYTES_A_SECOND}


def zero(bench: Bench) -> Figures:
    """Seconds of forward and backward of one group: plain, stage 3, its leaf modules, stage 2."""
    import os  # noqa: PLC0415

    import deepspeed  # noqa: PLC0415 - slow to import

    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT="0")
    deepspeed.init_distributed("nccl" if bench.is_cuda else "gloo", verbose=False)
    dtype = torch.bfloat16 if bench.is_cuda else torch.float32
    found = {}
    for name, stage in (("plain", 0), ("stage 3", 3), ("stage 3, leaves", 3), ("stage 2", 2)):
        model = bench.policy(dtype).train()
        engine = _engine(model, stage, has_leaves="leaves" in name) if stage else None

        step = bench.train_step if engine is None else partial(_engine_step, bench)
        found[name] = bench.seconds(partial(step, engine or model))
    return found


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
    environment, kernels, exactness, tower, micro_step, memory, rollout, zero, bad_step, steps
)  # fmt: skip


def main(name: str, model: str) -> None:
    """Runs a block; its figures are the last line that it prints."""
    use_expandable_segments()
    choose_attention_kernels(cudnn_attention=False)
    (block,) = (one for one in BLOCKS if one.__name__ == name)
    print(json.dumps(block(Bench(model))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
