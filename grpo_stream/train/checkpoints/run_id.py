"""Which run an output folder belongs to: ``run.json`` names it, and each checkpoint its own.

Two runs may share a folder only if somebody says so (``old_checkpoints``). Then ``auto`` must not
take the checkpoint of the other one because its number is higher.
"""

import json
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path

from grpo_stream.errors import ConfigError
from grpo_stream.storage.atomic_files import write_atomic

RUN_NAME = "run.json"
"""File of an output folder that names its present run."""
EARLIER_NAME = "earlier_runs"
"""Folder of an output folder that ``old_checkpoints=move`` moves checkpoints to."""
OLD_CHECKPOINTS = ("refuse", "move", "keep")
"""Values of ``old_checkpoints``."""

logger = logging.getLogger(__name__)


def new_run_id() -> str:
    """An id that no other run has."""
    return uuid.uuid4().hex[:12]


def read_run_id(output_dir: Path) -> str | None:
    """The present run of a folder; None where nothing names it."""
    try:
        run_id = json.loads((output_dir / RUN_NAME).read_bytes())["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return run_id if isinstance(run_id, str) else None


def write_run_id(output_dir: Path, run_id: str) -> None:
    """Makes a run the present one of its folder."""
    if read_run_id(output_dir) != run_id:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(output_dir / RUN_NAME, json.dumps({"run_id": run_id}).encode())


def check_old_checkpoints(value: str) -> None:
    """Checks the setting ``old_checkpoints``.

    Raises:
        ConfigError: it is none of :data:`OLD_CHECKPOINTS`.
    """
    if value not in OLD_CHECKPOINTS:
        expected = f"must be one of {', '.join(OLD_CHECKPOINTS)}"
        raise ConfigError("old_checkpoints", value, expected)


def handle_old_checkpoints(output_dir: Path, others: Sequence[Path], old_checkpoints: str) -> None:
    """Does what was asked for with the checkpoints of other runs, before a run begins beside them.

    Args:
        output_dir: Of the run.
        others: Checkpoints in it that are not the run's.
        old_checkpoints: ``refuse``; ``move`` them to a folder below; ``keep`` them where they are
            until one of the same name is written, which moves that one.

    Raises:
        ConfigError: they are refused.
    """
    if not others or old_checkpoints == "keep":
        return
    if old_checkpoints == "refuse":
        names = ", ".join(path.name for path in others[-3:])
        expected = (
            f"holds checkpoints of another run ({names}): resume_from_checkpoint=auto continues "
            "it; for a new run give another output_dir, or old_checkpoints=move (to "
            f"{EARLIER_NAME}/) or old_checkpoints=keep"
        )
        raise ConfigError("output_dir", str(output_dir), expected)
    move_aside(others)


def move_aside(checkpoints: Sequence[Path]) -> None:
    """Moves checkpoints of another run to a new folder below their own."""
    number = 1
    while (folder := checkpoints[0].parent / EARLIER_NAME / f"{number:03d}").exists():
        number += 1
    folder.mkdir(parents=True)
    for path in checkpoints:
        path.rename(folder / path.name)
        logger.warning("moved %s of another run to %s", path, folder)
