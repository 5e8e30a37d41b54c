"""A plugin of vLLM by which its CPU backend takes new weights (vLLM 0.30, on the CPU alone).

``dispatch_cpu_unquantized_gemm`` packs the weight of a linear layer into the layout of its kernel
and drops the original, or from then on multiplies by the packed copy. ``load_weights`` then finds
no parameter with a ``weight_loader``, or changes one that nobody reads. GPU backends keep it. Of
experts the packed weight takes the original's place, and new weights would be read as packed ones.
"""

from typing import Any


def register() -> None:
    """Called by vLLM in each of its processes before a model is loaded."""
    from torch.nn.functional import linear
    from vllm.model_executor.layers import utils
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    def use_the_weight_itself(layer: Any, remove_weight: bool = False) -> None:
        layer.cpu_linear = linear

    utils.dispatch_cpu_unquantized_gemm = use_the_weight_itself

    compute = cpu_moe.cpu_fused_moe

    def pack_at_each_call(output: Any, states: Any, w1: Any, w2: Any, *others: Any) -> None:
        isa = others[5]
        packed = (cpu_moe.cpu_prepack_moe_weight(weight, isa) for weight in (w1, w2))
        compute(output, states, *packed, *others)

    cpu_moe.cpu_fused_moe = pack_at_each_call
    # Only packs, and pads sizes that are no multiple of 32.
    cpu_moe.CPUUnquantizedExperts.process_weights_after_loading = lambda *_: None
