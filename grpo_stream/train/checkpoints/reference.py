"""A reference model that moves (``sync_ref_model``) is part of a run, and so of its checkpoints.

Its parameters are written whole, whatever the number of ranks that hold them, so any other number
loads them again. transformers and trl (1.16) save the policy alone.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.train.checkpoints.optimizer_settings import saved_settings

REFERENCE_NAME = "reference.safetensors"
"""File of a checkpoint with the parameters of the reference model."""


def save_reference(model: torch.nn.Module, folder: Path, *, writes: bool) -> None:
    """Writes the reference model into a checkpoint; every rank must call.

    Args:
        model: The reference model, unwrapped.
        folder: The checkpoint.
        writes: Whether this rank writes. Under ZeRO-3 all take part in putting shares together.
    """
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        with _gathered(parameter):
            if writes:
                whole[name] = parameter.detach().cpu().clone().contiguous()
    if writes:
        save_file(whole, folder / REFERENCE_NAME)


def load_reference(model: torch.nn.Module, folder: Path) -> bool:
    """Reads what :func:`save_reference` wrote; whether there was something. Every rank must call.

    Args:
        model: The reference model, unwrapped.
        folder: The checkpoint.
    """
    path = folder / REFERENCE_NAME
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as whole, torch.no_grad():
        for name, parameter in model.named_parameters():
            with _gathered(parameter, modifier_rank=0):
                if parameter.numel():  # under ZeRO-3 those of other ranks than 0 are overwritten
                    parameter.copy_(whole.get_tensor(name))
    return True


def check_reference(checkpoint: Path, args: GRPOConfig) -> None:
    """Refuses a checkpoint of a version that did not save the reference model, which had moved.

    Raises:
        ConfigError: naming ``sync_ref_model``.
    """
    if not getattr(args, "sync_ref_model", False):  # supervised training has no reference
        return
    if not args.beta or (checkpoint / REFERENCE_NAME).is_file():
        return
    if saved_settings(checkpoint).get("sync_ref_model") is not False:
        expected = (
            f"has moved the reference model, and {checkpoint} does not hold it; begin anew, or use "
            "False, which resumes with the model that the run began with as reference"
        )
        raise ConfigError("sync_ref_model", True, expected)


@contextlib.contextmanager
def _gathered(parameter: Any, modifier_rank: int | None = None) -> Iterator[None]:
    """Within, a parameter that ZeRO-3 has cut into shares is whole."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed  # noqa: PLC0415 - seconds to import

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=modifier_rank):
        yield
