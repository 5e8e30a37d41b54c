"""Which checkpoints go when ``save_total_limit`` is reached: the oldest by count, not by clock."""

import logging
import shutil
from pathlib import Path

from grpo_stream.train.checkpoints.whole_checkpoint import MARKER_NAME, Marker, checkpoints_in

logger = logging.getLogger(__name__)


def rotate(output_dir: Path, limit: int | None, *, newest: Path, best: Path | None) -> None:
    """Removes a run's oldest checkpoints until ``limit`` are left, and logs each.

    What an interrupted save has left goes first. Checkpoints of other runs do not count and stay.

    Args:
        output_dir: Of the run.
        limit: ``save_total_limit``; None or less than 1: nothing goes.
        newest: Has just been sealed, and stays.
        best: Stays, if any.
    """
    if limit is None or limit < 1:
        return
    found = dict(checkpoints_in(output_dir))
    own = found.get(newest)
    kept = {path.resolve() for path in (newest, best) if path is not None}
    ours = [path for path, marker in found.items() if _is_of(marker, own)]
    # The best one and the newest are two, whatever the limit.
    num_over = len(ours) - max(limit, sum(path.resolve() in kept for path in ours))
    for path in [path for path in ours if path.resolve() not in kept][: max(0, num_over)]:
        logger.warning("removed %s: save_total_limit=%d", path, limit)
        (path / MARKER_NAME).unlink(missing_ok=True)  # first: the rest goes file by file
        shutil.rmtree(path, ignore_errors=True)


def _is_of(marker: Marker | None, own: Marker | None) -> bool:
    """Whether a checkpoint is of the run that wrote ``own``; one without a marker is anybody's."""
    return marker is None or own is None or marker.run_id == own.run_id
