"""What a device does at most, measured in the run: bytes and products a second.

Expected times are the work over these rates, so they hold for any card, and for a CPU.
"""

from functools import partial
from typing import Any

import torch

from benchmarks.gpu.gpu_bench import Bench
from grpo_stream.train.setup.memory.group_memory import Batch
from grpo_stream.train.setup.memory.model_sizes import MetaModel

_COPY_BYTES = {"cuda": 2**31, "cpu": 2**27}  # far more than any cache holds
_MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}


def bytes_a_second(bench: Bench) -> float:
    """Of the device's memory, read and written: the fastest of some copies within it."""
    source = torch.ones(_COPY_BYTES[bench.device.type], dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / bench.seconds(partial(target.copy_, source), times=5)


def operations_a_second(bench: Bench) -> float:
    """Additions and multiplications of a product of large matrices in bfloat16."""
    side = _MATRIX_SIDE[bench.device.type]
    matrix = torch.ones(side, side, dtype=torch.bfloat16, device=bench.device)
    return 2 * side**3 / bench.seconds(partial(torch.mm, matrix, matrix), times=5)


def bytes_of_a_token(model: Any) -> int:
    """Bytes of weights that a token reads, whatever the number of completions.

    The text model's and the head's; the tower's are not read, and of an embedding that is not the
    head as well, a row.
    """
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    weights = {id(one): one for one in [*model.get_decoder().parameters(), head]}
    if embedding is not head:
        weights.pop(id(embedding), None)
    return sum(one.numel() * one.element_size() for one in weights.values())


def operations_of_micro_step(model: MetaModel, batch: Batch, *, checkpointing: bool) -> float:
    """Of the matrices, forward and backward; attention's own are not counted.

    Two for each weight and token forward, four backward, and two again with checkpointing, but in
    the head.

    Args:
        model: Sizes of its parts.
        batch: What a micro-step has.
        checkpointing: Layers are computed again in backward.
    """
    own = batch.num_generations * batch.completion_tokens
    patches = batch.image_tokens * model.config.vision_config.spatial_merge_size**2
    tokens = {"layers": batch.prompt_tokens - 1 + own, "tower": patches}
    passes = 8 if checkpointing else 6
    layers = sum(passes * model.parts[part] * number for part, number in tokens.items())
    return float(batch.groups_per_micro_step * (layers + 6 * model.head.numel() * own))
