"""A plugin of vLLM by which its CPU backend takes new weights (vLLM 0.30, on the CPU alone).

``dispatch_cpu_unquantized_gemm`` packs the weight of a linear layer into the layout of its kernel
and drops the original, or from then on multiplies by the packed copy. ``load_weights`` then finds
no parameter with a ``weight_loader``, or changes one that nobody reads. GPU backends keep it.
"""

from typing import Any


def register() -> None:
    """Called by vLLM in each of its processes before a model is loaded."""
    from torch.nn.functional import linear
    from vllm.model_executor.layers import utils

    def use_the_weight_itself(layer: Any, remove_weight: bool = False) -> None:
        layer.cpu_linear = linear

    utils.dispatch_cpu_unquantized_gemm = use_the_weight_itself
