"""The output folder of a run: whose it is, what else is in it, and which checkpoints go."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trl import GRPOConfig

from grpo_stream.train.checkpoints.output_lease import OutputLease, holding_on_rank_0
from grpo_stream.train.checkpoints.rotation import rotate
from grpo_stream.train.checkpoints.run_id import (
    handle_old_checkpoints,
    move_aside,
    new_run_id,
    read_run_id,
    write_run_id,
)
from grpo_stream.train.checkpoints.universal import zero_stage_of
from grpo_stream.train.checkpoints.whole_checkpoint import (
    Marker,
    begin,
    next_sequence,
    others_in,
    seal,
)
from grpo_stream.train.cluster.together import together


class OutputFolder:
    """The output folder of one rank's run.

    Args:
        args: The run's settings.
        old_checkpoints: What becomes of other runs' checkpoints in it.
    """

    def __init__(self, args: GRPOConfig, old_checkpoints: str = "refuse") -> None:
        self._args = args
        self._old_checkpoints = old_checkpoints
        self._run_id = ""
        self._lease: OutputLease | None = None

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keeps other runs out of the folder; every rank must enter.

        Raises:
            ConfigError: another run is in it.
        """
        folder, is_rank_0 = Path(self._args.output_dir), self._args.process_index == 0
        with holding_on_rank_0(folder, is_rank_0=is_rank_0) as self._lease:
            yield

    def enter(self, checkpoint: Path | None, marker: Marker | None) -> None:
        """Makes the run the present one of the folder; every rank must call this.

        Args:
            checkpoint: That it resumes from, if any.
            marker: Of that.

        Raises:
            ConfigError: other runs have left checkpoints in the folder.
        """
        args, folder = self._args, Path(self._args.output_dir)
        is_auto = str(args.resume_from_checkpoint).lower() == "auto"
        is_inside = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()

        def decide() -> tuple[str, bool]:
            present = read_run_id(folder)
            if marker is not None:
                return marker.run_id, is_inside or marker.run_id == present
            # Killed before its first checkpoint: it is the same run, and others were let be.
            is_present = is_auto and present is not None
            return (present or "") if is_present else new_run_id(), is_present

        def clear(run_id: str, *, is_present: bool) -> None:
            if not is_present:
                handle_old_checkpoints(folder, others_in(folder, run_id), self._old_checkpoints)
            write_run_id(folder, run_id)

        run_id, is_present = next(filter(None, together(decide, does=args.process_index == 0)))
        together(partial(clear, run_id, is_present=is_present), does=args.should_save)
        self._run_id = run_id

    def begin(self, checkpoint: Path) -> None:
        """Makes an empty folder for a checkpoint.

        Raises:
            CheckpointError: another run has taken the output folder over.
        """
        if self._lease is not None:
            self._lease.check()
        if self._args.should_save:
            if checkpoint in others_in(checkpoint.parent, self._run_id):
                move_aside([checkpoint])
            begin(checkpoint)

    def seal(self, checkpoint: Path) -> None:
        """Declares a checkpoint whole; every rank has written and synced its files."""
        if self._args.should_save:
            seal(
                checkpoint,
                num_ranks=self._args.world_size,
                zero_stage=zero_stage_of(self._args),
                is_resumable=not self._args.save_only_model,
                run_id=self._run_id,
                sequence=next_sequence(checkpoint.parent),
            )

    @contextmanager
    def rotating_itself(self) -> Iterator[None]:
        """Keeps transformers from removing checkpoints: by their times, and those of other runs."""
        args = self._args
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            yield
        finally:
            args.save_total_limit = limit

    def rotate(self, newest: Path, best: str | None) -> None:
        """Removes checkpoints above ``save_total_limit``, but for the newest and the best one."""
        if self._args.should_save:
            best_folder = None if best is None else Path(best)
            rotate(newest.parent, self._args.save_total_limit, newest=newest, best=best_folder)
