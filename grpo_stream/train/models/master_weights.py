"""Weights in 16 bits and who keeps them in 32: nobody, DeepSpeed, or the optimizer here.

bfloat16 has 8 bits: a weight of 0.02 can be changed by 1e-4, not by 1e-6, which is what a global
step of GRPO changes it by. Without a copy in float32 nearly all of an update is rounded away, with
gradient norms and rewards that look as always.
"""

from typing import Any, get_args

import torch
from trl import GRPOConfig

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.setup.accelerate_launch import deepspeed_config_of, keeps_float32
from grpo_stream.train.setup.arguments import MasterWeightsSetting

_SIXTEEN_BITS = (torch.bfloat16, torch.float16)
MASTER_WEIGHTS = get_args(MasterWeightsSetting)
"""Values of ``master_weights``."""


class MasterWeights(torch.optim.Optimizer):
    """An optimizer whose weights of 16 bits are float32 inside, and rounded after each step.

    Checkpoints hold the float32 weights, so a resumed run is the same to the last bit.

    Args:
        optimizer: Of torch's kind; it has made no step.

    Raises:
        ConfigError: it has made one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        # Not torch's own __init__: groups, state and hooks are those of the optimizer inside.
        if optimizer.state:
            expected = "needs an optimizer that has made no step; give a new one, or None"
            raise ConfigError("optimizers", type(optimizer).__name__, expected)
        self.optimizer = optimizer
        self._pairs: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        for group in optimizer.param_groups:
            group["params"] = [self._master_of(parameter) for parameter in group["params"]]

    def _master_of(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        if parameter.dtype not in _SIXTEEN_BITS:
            return parameter
        master = torch.nn.Parameter(parameter.detach().float())
        self._pairs.append((parameter, master))
        return master

    @property
    def masters(self) -> list[torch.Tensor]:
        """The float32 weights, in the order of the groups."""
        return [master.detach() for _, master in self._pairs]

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Of the optimizer inside: its weights are the float32 ones."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """Of the optimizer inside."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Of the optimizer inside."""
        return self.optimizer.defaults

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Steps in float32, and rounds."""
        for parameter, master in self._pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self.optimizer.step(closure)
        for parameter, master in self._pairs:
            parameter.copy_(master)
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of the model's weights; the float32 ones have gradients within a step only."""
        self.optimizer.zero_grad(set_to_none)
        for parameter, _ in self._pairs:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer inside, and the float32 weights."""
        return self.optimizer.state_dict() | {"master_weights": self.masters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes both over, and rounds.

        Raises:
            CheckpointError: the state is of an optimizer without float32 weights.
        """
        inner = dict(state_dict)
        masters = inner.pop("master_weights", None)
        if masters is None or len(masters) != len(self._pairs):
            raise CheckpointError(
                "the optimizer's state holds no float32 weights for master_weights=float32: it was "
                "saved without; resume with the settings of then"
            )
        self.optimizer.load_state_dict(inner)
        for (parameter, master), saved in zip(self._pairs, masters, strict=True):
            master.data = saved.to(parameter.device, torch.float32, copy=True)
            parameter.copy_(master)


def with_master_weights(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer with float32 weights inside; one that has them already, as it is."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if isinstance(optimizer, MasterWeights) or isinstance(inner, MasterWeights):
        return optimizer
    return MasterWeights(optimizer)


def check_dtype(dtype: Any, config: Any, args: GRPOConfig, master_weights: str) -> None:
    """Checks the type that weights are loaded in, all of which are trained.

    Args:
        dtype: As ``from_pretrained`` takes it; None is trl's own default, float32.
        config: The policy's configuration, for ``auto``; None where it is not known yet.
        args: trl's settings.
        master_weights: Who keeps float32 weights.

    Raises:
        ConfigError: nobody does, or who is said to cannot.
    """
    if master_weights not in MASTER_WEIGHTS:
        expected = f"must be one of {', '.join(MASTER_WEIGHTS)}"
        raise ConfigError("master_weights", master_weights, expected)
    if master_weights == "float32" and deepspeed_config_of(args) is not None:
        expected = "is for runs without DeepSpeed, which keeps float32 weights itself; use 'none'"
        raise ConfigError("master_weights", master_weights, expected)
    if dtype == "auto":
        dtype = getattr(config, "dtype", None)
    name = str(dtype).removeprefix("torch.")
    found = getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}.get(name, name), None)
    if found in _SIXTEEN_BITS:
        _check_kept("dtype", found, args, master_weights)


def check_trained_weights(model: torch.nn.Module, args: GRPOConfig, master_weights: str) -> None:
    """Checks the weights that a model trains, whoever has loaded them.

    Raises:
        ConfigError: some are of 16 bits, and nobody keeps them in 32.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in _SIXTEEN_BITS:
            _check_kept(f"model ({name})", parameter.dtype, args, master_weights)


def _check_kept(field: str, dtype: torch.dtype, args: GRPOConfig, master_weights: str) -> None:
    name = str(dtype).removeprefix("torch.")
    if master_weights == "float32" and dtype == torch.float16:
        expected = "small gradients are 0 in it: master_weights=float32 is for bfloat16; use that"
        raise ConfigError(field, name, expected)
    if master_weights == "none" and not keeps_float32(args):
        raise ConfigError(
            field,
            name,
            "would train weights in 16 bits that nobody keeps in 32, so that small updates are "
            "rounded away. Three ways out: dtype=float32 with bf16=true (autocast); DeepSpeed "
            "(deepspeed=ds_configs/zero3.json), which keeps a float32 copy; master_weights="
            "float32, an optimizer that keeps one. If an optimizer of your own does, "
            "master_weights=optimizer says so",
        )
