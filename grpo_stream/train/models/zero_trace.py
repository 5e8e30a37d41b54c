"""The order in which ZeRO-3 gathers weights, kept across a rollout.

DeepSpeed (0.19) notes in which order a forward and a backward pass need their weights, and gathers
ahead of the next passes by that. trl (1.16, ``trl.models.utils.add_hooks``) throws the order away
behind each rollout, as a pass of a model that samples may have been taken for it. With one
micro-step a rollout nothing would ever be gathered ahead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def kept_trace(accelerator: Any, *, is_gathered: bool) -> Iterator[None]:
    """Around ``unwrap_model_for_generation``: what was noted of training's passes stays.

    While weights are gathered for sampling, hooks are off and nothing is noted, so nothing wrong
    can be; DeepSpeed itself drops an order that a later pass departs from.

    Args:
        accelerator: accelerate's, ready; without an engine of stage 3 nothing is done.
        is_gathered: Whether all weights are gathered meanwhile. Else sampling's passes go through
            the hooks.
    """
    coordinator = coordinator_of(accelerator)
    if coordinator is None or not is_gathered or coordinator.is_invalid_trace():
        yield
        return
    # What trl and DeepSpeed's ``_register_deepspeed_module`` ask before they drop it.
    coordinator.is_invalid_trace = lambda: True
    try:
        yield
    finally:
        del coordinator.is_invalid_trace


@contextmanager
def whole_traces(accelerator: Any) -> Iterator[None]:
    """Around passes without a backward: an order that was noted of them alone is dropped.

    Else it would be dropped in the midst of the next training pass, which would not be noted, and
    so on with each rollout that is scored.

    Args:
        accelerator: See :func:`kept_trace`.
    """
    coordinator = coordinator_of(accelerator)
    was_invalid = coordinator is not None and coordinator.is_invalid_trace()
    yield
    if was_invalid and not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()  # noqa: SLF001


def coordinator_of(accelerator: Any) -> Any:
    """DeepSpeed's ``PartitionedParameterCoordinator`` of the policy; None without stage 3.

    Args:
        accelerator: accelerate's (1.15), ready.
    """
    wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)
    optimizer = getattr(getattr(wrapped, "engine", None), "optimizer", None)
    offload = getattr(optimizer, "parameter_offload", None)
    return None if offload is None else offload.get_param_coordinator()
