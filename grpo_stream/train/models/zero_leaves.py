"""Layers whose weights travel together under ZeRO-3: one set of hooks a layer, not one a module.

DeepSpeed (0.19) gathers the weights of every module by hooks of its own around it, about twenty in
a decoder layer, in Python. A *leaf module* is gathered as a whole: fewer hooks, larger messages,
and a layer of weights more in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from trl.models.utils import add_hooks, remove_hooks


@contextmanager
def leaf_layers(model: torch.nn.Module, *, is_wanted: bool) -> Iterator[None]:
    """Around the making of DeepSpeed's engine: decoder layers and vision blocks become leaves.

    Not for groups behind a forked prefix: of its prompt the last layer hands on keys and values
    alone, and DeepSpeed, which waits for the gradient of a leaf's output, would not gather it.

    Gradients of a leaf's weights are reduced as those of any other. DeepSpeed's own way (0.19,
    ``DeepSpeedZeroOptimizer_Stage3.create_reduce_and_remove_grad_hooks``) does so once the layer's
    *input* has its gradient, and takes zeros for weights that have none yet: all of them in a layer
    that is called again in the same pass, or whose input needs no gradient, as the first layer's
    with LoRA. Nothing would say so.

    Args:
        model: One with LoRA around it, too.
        is_wanted: Whether there is ZeRO-3 and the layers are called as a whole; else nothing is
            done.
    """
    if not is_wanted:
        yield
        return
    from deepspeed.runtime.zero import stage3  # noqa: PLC0415 - seconds, and only needed here
    from deepspeed.utils import set_z3_leaf_module  # noqa: PLC0415

    for layer in whole_layers(model):
        set_z3_leaf_module(layer, True)
    own: Any = stage3.z3_leaf_parameter
    stage3.z3_leaf_parameter = lambda _: False
    try:
        yield
    finally:
        stage3.z3_leaf_parameter = own


def make_leaves(engine: Any) -> None:
    """The same for a model of which an engine is there already, as trl (1.16) makes a reference's.

    Its hooks are made anew. Nothing is reduced in it, as it has no gradients.

    Args:
        engine: DeepSpeed's, under stage 3.
    """
    from deepspeed.utils import set_z3_leaf_module  # noqa: PLC0415

    for layer in whole_layers(engine.module):
        set_z3_leaf_module(layer, True)
    remove_hooks(engine)
    add_hooks(engine)


def whole_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Decoder layers and blocks of the vision tower: what transformers (5.23) can checkpoint."""
    return [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
