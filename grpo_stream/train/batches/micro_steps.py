"""The trainer's view of the stream: one item per micro-step."""

from typing import Any

from torch.utils.data import Dataset

from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.batches.synced_reader import SyncedReader


class MicroStepDataset(Dataset[Batch]):
    """Maps a micro-step of an epoch to its generation batch.

    trl (1.16) draws from the data once per micro-step but uses only the first batch of each
    generation. All micro-steps of a generation get the same object here, so that every record is
    read once. Being indexed, it also lets transformers resume by position: nothing is read again
    to skip what is done.

    Args:
        reader: Delivers generation batches.
        num_repeats: Micro-steps per generation: steps_per_generation x num_iterations.
    """

    def __init__(self, reader: SyncedReader[Batch], num_repeats: int) -> None:
        self.reader = reader
        self.num_repeats = num_repeats
        self.epoch = 0
        """Epoch whose batches are given; set by the trainer."""
        self._last: tuple[tuple[int, int], Batch] | None = None

    def __len__(self) -> int:
        """Micro-steps of the epoch."""
        return self.reader.loader.stream.plan.num_batches_in(self.epoch) * self.num_repeats

    def __getitem__(self, micro_step: int) -> Batch:
        place = (self.epoch, micro_step // self.num_repeats)
        if self._last is None or self._last[0] != place:
            self._last = (place, self.reader.get(*place))
        return self._last[1]


def first_of(items: list[Any]) -> Any:
    """Collates a list of one item to that item; a function, so that it can be pickled."""
    (item,) = items
    return item
