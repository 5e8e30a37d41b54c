"""A checkpoint as a plain model: what ``from_pretrained`` loads, and nothing else."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.checkpoints.whole_checkpoint import check_files, read_marker, sync
from grpo_stream.train.models.model_path import ADAPTER_NAME, base_model_of
from grpo_stream.train.models.policy import load_policy, policy_config

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OTHERS = (
    "config.json", "generation_config.json", "task.json", "chat_template.*", "*processor*.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip


def export(checkpoint: Path, target: Path, dtype: str | None = None) -> str:
    """Writes the model of a checkpoint to a folder, whole or not at all.

    Weights that were saved whole are copied, bit for bit, unless ``dtype`` is given. Where ZeRO-3
    left shards only (``stage3_gather_16bit_weights_on_model_save`` false), they are put together in
    host memory, in float32, and written in the type that the configuration names. A LoRA adapter is
    merged into its base model.

    Args:
        checkpoint: ``checkpoint-N``, or the output folder of a finished run.
        target: Must not exist, or be empty.
        dtype: What the weights become, as torch names it; None leaves them as said above.

    Returns:
        Where the weights came from, in words.

    Raises:
        CheckpointError: it is not whole, or holds no model.
        ConfigError: ``target`` is in use, or what is needed to merge an adapter is missing.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError("to", str(target), "is there already; give a new or an empty folder")
    if (checkpoint / "complete.json").exists() or re.fullmatch(r"checkpoint-\d+", checkpoint.name):
        check_files(checkpoint, read_marker(checkpoint))
    with _whole_folder(target) as folder:
        if (checkpoint / ADAPTER_NAME).is_file():
            load_policy(checkpoint, dtype=dtype or "auto").save_pretrained(folder)
            source = f"a LoRA adapter merged into {base_model_of(checkpoint)}"
        elif any((checkpoint / name).is_file() for name in _WEIGHTS):
            source = _take_whole(checkpoint, folder, dtype)
        elif (checkpoint / "latest").is_file():
            source = _join_shards(checkpoint, folder, dtype)
        else:
            raise CheckpointError(f"{checkpoint} holds no model: neither {_WEIGHTS[0]} nor shards")
        _copy(checkpoint, folder, _OTHERS)
    return source


def _take_whole(checkpoint: Path, folder: Path, dtype: str | None) -> str:
    if dtype is None:
        _copy(checkpoint, folder, ("model*.safetensors", _WEIGHTS[1]))
        return "whole weights"
    load_policy(checkpoint, dtype=dtype).save_pretrained(folder)
    return f"whole weights, in {dtype}"


def _join_shards(checkpoint: Path, folder: Path, wanted: str | None) -> str:
    from deepspeed.utils.zero_to_fp32 import (  # noqa: PLC0415 - seconds to import
        get_fp32_state_dict_from_zero_checkpoint,
    )

    config = policy_config(checkpoint)
    architecture: Any = getattr(transformers, config.architectures[0])
    with torch.device("meta"):
        model = architecture(config)
    weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    dtype = getattr(torch, wanted) if wanted else config.dtype or torch.float32
    model.load_state_dict({name: w.to(dtype) for name, w in weights.items()}, assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    return f"the shards of ZeRO, in {dtype}"


def _copy(checkpoint: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    for path in (path for pattern in patterns for path in checkpoint.glob(pattern)):
        if not (folder / path.name).exists():  # what was made for this model comes first
            shutil.copyfile(path, folder / path.name)


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its name when all went well, else disappears."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
    ) as temp:
        folder = Path(temp) / "model"
        folder.mkdir()
        yield folder
        sync(folder)
        folder.replace(target)
