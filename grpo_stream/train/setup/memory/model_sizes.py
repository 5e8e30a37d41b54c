"""How many weights a model has, by parts, from its configuration alone: any family's."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, Qwen2_5_VLConfig
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.policy import policy_config


class MetaModel:
    """A model as its configuration describes it, on PyTorch's meta device: sizes without memory.

    Weights that are used twice, as a head that is the table of tokens, count once.

    Args:
        config: Of an image-and-text model that transformers knows.

    Raises:
        ConfigError: no model can be made of it.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        try:
            with torch.device("meta"), _without_zero3():
                self.module: Any = AutoModelForImageTextToText.from_config(config)
        except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            expected = f"cannot be built from its configuration ({reason})"
            raise ConfigError("model", config.model_type, expected) from error
        self.decoder: nn.Module = self.module.get_decoder()
        self.head: nn.Parameter = self.module.get_output_embeddings().weight
        """Shape (vocabulary, hidden size)."""
        self.layers = list(_layers(self.decoder))
        """Of the text model."""
        tower = self.module.get_encoder(modality="image")
        self.blocks = list(_layers(tower)) if isinstance(tower, nn.Module) else []
        """Of the vision tower; none where transformers does not say which it is."""

    @cached_property
    def num_weights(self) -> int:
        """N, of the whole model."""
        return _count(self.module.parameters())

    @cached_property
    def largest_module_weights(self) -> int:
        """Of the module that has most of its own: the least that ZeRO-3 gathers at once.

        Source: ``estimate_zero3_model_states_mem_needs_all_live`` (deepspeed 0.19.8).
        """
        return max(_count(one.parameters(recurse=False)) for one in self.module.modules())

    @cached_property
    def parts(self) -> dict[str, int]:
        """``embedding``, ``layers``, ``head`` (0 where it is the embedding) and ``tower``.

        ``tower`` is all that is neither text model nor head: what joins the two is with it. The
        text model's other weights, its last norm for example, are in no part.
        """
        embedding = list(self.module.get_input_embeddings().parameters())
        text = {id(weight) for weight in [*self.decoder.parameters(), *embedding, self.head]}
        return {
            "embedding": _count(embedding),
            "layers": _count(weight for layer in self.layers for weight in layer.parameters()),
            "head": 0 if any(weight is self.head for weight in embedding) else self.head.numel(),
            "tower": _count(w for w in self.module.parameters() if id(w) not in text),
        }


@contextmanager
def _without_zero3() -> Iterator[None]:
    """Keeps transformers (5.23) from sharing a model's weights out among the ranks as it is built.

    It does so once a run's settings name a file of ZeRO-3, and then all ranks must build it.
    """
    known = hf_deepspeed._hf_deepspeed_config_weak_ref  # noqa: SLF001 - there is no public name
    settings = known() if known is not None else None
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if settings is not None:
            hf_deepspeed.set_hf_deepspeed_config(settings)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    return (one for one in module.modules() if isinstance(one, GradientCheckpointingLayer))


def _count(weights: Iterable[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in {id(weight): weight for weight in weights}.values())


_TEXT_NAMES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_QWEN2_5_VL = {
    "3B": ((36, 2048, 11008, 16, 2, 151936), 3420),
    "7B": ((28, 3584, 18944, 28, 4, 152064), 3420),
    "32B": ((64, 5120, 27648, 40, 8, 152064), 3456),
    "72B": ((80, 8192, 29568, 64, 8, 152064), 3456),
}
"""Qwen2.5-VL by the size in its name: values of ``_TEXT_NAMES``, inner size of the tower.

Source: ``config.json`` of ``Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct`` on the Hugging Face hub; the
weights that follow are as many as the hub counts (3,754,622,976 of the 3B model, and so on).
"""
SIZE_NAMES = tuple(_QWEN2_5_VL)
"""What :func:`find_config` knows without any file."""


def find_config(model: str) -> Any:
    """The configuration of ``3B``, ``Qwen/Qwen2.5-VL-3B-Instruct``, a folder or any hub id.

    Raises:
        ConfigError: it is none of them, or of no image-and-text model.
    """
    if (Path(model) / "config.json").is_file():
        return policy_config(model)
    for name in SIZE_NAMES:
        if model.upper() == name or f"QWEN2.5-VL-{name}" in model.upper():
            return _qwen2_5_vl(name)
    if "/" in model:
        return policy_config(model)
    expected = f"must be one of {', '.join(SIZE_NAMES)}, a folder with a config.json, or a hub id"
    raise ConfigError("model", model, expected)


def _qwen2_5_vl(name: str) -> Qwen2_5_VLConfig:
    text, tower_inner = _QWEN2_5_VL[name]
    sizes = dict(zip(_TEXT_NAMES, text, strict=True))
    tower = {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": tower_inner,
        "out_hidden_size": sizes["hidden_size"],
    }
    return Qwen2_5_VLConfig(
        text_config=sizes, vision_config=tower, tie_word_embeddings=name == "3B"
    )
