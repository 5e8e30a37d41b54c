"""What is set for CUDA before the first tensor is there: memory that grows, and kernels.

Nothing here needs a GPU, and nothing of it has an effect without one.
"""

import os

import torch

_ALLOCATOR = "expandable_segments:True"


def prepare_cuda() -> None:
    """The first line of every program that computes: memory that grows, no attention of cuDNN's.

    It comes before CUDA is asked for anything. A setting that lets cuDNN in again is heeded later,
    by :func:`choose_attention_kernels`, still before the first attention.
    """
    use_expandable_segments()
    choose_attention_kernels(cudnn_attention=False)


def use_expandable_segments() -> None:
    """Lets CUDA's memory grow in place, unless the environment says something about it.

    Each micro-batch has another length, and with fixed segments each new largest one leaves the
    last behind as a hole. The allocator reads the variable when it is first asked for memory.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if not any(name in os.environ for name in names):
        # torch knows the first name from 2.9 on, and warns of the second since.
        is_old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9)
        os.environ[names[is_old]] = _ALLOCATOR


def choose_attention_kernels(*, cudnn_attention: bool) -> str:
    """Whether this process's ``scaled_dot_product_attention`` may take cuDNN's kernels.

    On Hopper they are torch's first choice (2.11 and later). There a mask over lengths of 64
    modulo 128 made gradients NaN (pytorch#196678, trl#7181), and a kernel is planned anew for each
    new shape, which a packed row nearly always is.

    Args:
        cudnn_attention: The setting of that name.

    Returns:
        What was chosen, for the log.
    """
    torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
    return "on" if cudnn_attention else "off: flash, memory-efficient and plain kernels"
