"""Another number of ranks: DeepSpeed's universal checkpoints (deepspeed 0.19).

ZeRO cuts optimizer state, and at stage 3 weights, into one share per rank, and loads them on as
many ranks again. A universal checkpoint holds each parameter whole. It is made from a checkpoint,
inside of it, by ``launch/convert_checkpoint.py``.
"""

import contextlib
import re
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.checkpoints.whole_checkpoint import Marker, check_files, read_marker

_LATEST = "latest_universal"
"""DeepSpeed's file that names the folder; it writes it last."""


def universal_in(checkpoint: Path) -> Path | None:
    """The universal form that a checkpoint holds, if any.

    Raises:
        CheckpointError: what is named is not inside of the checkpoint.
    """
    return _named_by(checkpoint, _LATEST)


def _named_by(checkpoint: Path, latest: str) -> Path | None:
    """The folder that a file of DeepSpeed's names: one of the checkpoint's own.

    DeepSpeed loads pickles from it, which run what their author likes.
    """
    path = checkpoint / latest
    if not path.is_file():
        return None
    name = path.read_text(errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise CheckpointError(f"{path} names {name!r}, which is no folder of the checkpoint")
    return checkpoint / name


def make_universal(checkpoint: Path, *, num_processes: int = 1) -> Path:
    """Adds the universal form to a checkpoint of DeepSpeed, on any machine, without a GPU.

    It takes as much disk as the checkpoint's optimizer state, twice that while it is made. Made
    before, it is left alone.

    Args:
        checkpoint: A whole one.
        num_processes: That convert at a time; each holds one rank's share in memory.

    Returns:
        The new folder.

    Raises:
        CheckpointError: it is not whole.
        ConfigError: DeepSpeed did not write it.
    """
    marker = read_marker(checkpoint)
    check_files(checkpoint, marker)
    if marker.zero_stage is None:
        raise ConfigError(
            "checkpoint", str(checkpoint), "was written without DeepSpeed: any ranks load it"
        )
    made = universal_in(checkpoint)
    if made is not None:
        return made
    from deepspeed.checkpoint import ds_to_universal  # noqa: PLC0415 - seconds to import

    source = _named_by(checkpoint, "latest")
    if source is None:
        raise CheckpointError(f"{checkpoint} has no file named latest, which DeepSpeed writes")
    target = checkpoint / f"{source.name}_universal"
    shutil.rmtree(target, ignore_errors=True)  # what an interrupted conversion left
    target.mkdir()
    settings = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=num_processes,
        num_merge_workers=num_processes,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(sys.stderr):
        ds_to_universal.main(settings)
    return target


def zero_stage_of(args: GRPOConfig) -> int | None:
    """The run's ZeRO stage; None without DeepSpeed."""
    plugin = args.deepspeed_plugin
    return None if plugin is None else int(plugin.zero_stage)


def fitting_marker(checkpoint: Path, args: GRPOConfig) -> Marker:
    """The marker of a checkpoint that this run's ranks can take up.

    One rank of each node compares the files with it.

    Raises:
        CheckpointError: it is not whole.
        ConfigError: it holds no optimizer; DeepSpeed wrote it and is off now, or the other way
            round; another number of ranks wrote it, and it holds no universal form.
    """
    name, value = "resume_from_checkpoint", str(checkpoint)
    marker = read_marker(checkpoint)
    if args.local_process_index == 0:
        check_files(checkpoint, marker)
    if marker.zero_stage is not None:
        _named_by(checkpoint, "latest")
    if not marker.is_resumable:
        expected = "holds the model only (save_only_model): give it as the model to begin from"
        raise ConfigError(name, value, expected)
    if zero_stage_of(args) != marker.zero_stage:
        saved, now = (
            "without DeepSpeed" if stage is None else f"with ZeRO stage {stage}"
            for stage in (marker.zero_stage, zero_stage_of(args))
        )
        expected = f"was written {saved}, and the run is {now}; give the deepspeed file of then"
        raise ConfigError(name, value, expected)
    is_cut = marker.zero_stage is not None and marker.num_ranks != args.world_size
    if is_cut and universal_in(checkpoint) is None:
        expected = (
            f"was written by {marker.num_ranks} ranks, and there are {args.world_size}: first run "
            f"python launch/convert_checkpoint.py --checkpoint {checkpoint}"
        )
        raise ConfigError(name, value, expected)
    return marker


def load_universal(config: dict[str, Any]) -> None:
    """Has an engine that is made from DeepSpeed's ``config`` load universal checkpoints."""
    config["checkpoint"] = config.get("checkpoint", {}) | {"load_universal": True}


def restore_groups(optimizer: Any, universal: Path | None) -> None:
    """Puts right what DeepSpeed 0.19.8 leaves of an optimizer when it loads a universal checkpoint.

    It gives all parameter groups the settings of the first, weight decay included, and all
    parameters one and the same step counter, which then counts each of them
    (``DeepSpeedZeroOptimizer_Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3``).

    Raises:
        CheckpointError: the checkpoint has other parameter groups.
    """
    if universal is None:
        raise CheckpointError("there is no universal form")
    # Written by DeepSpeed, which has just read it the same way.
    saved = torch.load(universal / "zero/optimizer_state.pt", weights_only=False)["param_groups"]
    if len(saved) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{universal} has {len(saved)} parameter groups, the optimizer has "
            f"{len(optimizer.param_groups)}: resume with the settings that it was written with"
        )
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        group.update({name: value for name, value in values.items() if name != "params"})
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
