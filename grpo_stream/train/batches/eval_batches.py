"""Evaluation while training covers every sample of a data set once: the reserve too.

Ranks must call the model equally often, so the samples behind the last whole batch make one
smaller batch, of equally many prompts on every rank. Where they do not come out even, a few are
repeated, at most world size - 1, and their rewards do not count.
"""

from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import Place, SlotPlace
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.batches.micro_steps import MicroStepDataset
from grpo_stream.train.batches.synced_reader import SyncedReader


class EvalLoader(PromptLoader[Batch]):
    """A loader of an evaluation stream, with one batch more per epoch where there is a reserve.

    Its batches have one more entry, ``num_prompts``: how many prompts count, over all ranks.
    """

    @property
    def num_batches(self) -> int:
        """Batches of an evaluation, the same on every rank."""
        return self.stream.num_batches + bool(self._reserve())

    def get(self, epoch: int, batch_index: int) -> Batch:
        """See :meth:`PromptLoader.get`."""
        if batch_index < self.stream.num_batches:
            batch = super().get(epoch, batch_index)
            return batch | {"num_prompts": self.stream.config.num_lanes}
        reserve = self._reserve()
        world = self.stream.world
        per_rank = -(-len(reserve) // world.world_size)
        first = world.rank * per_rank
        samples = [
            self._read(batch_index, number, reserve[number % len(reserve)])
            for number in range(first, first + per_rank)
        ]
        return self.transform(samples) | {"num_prompts": len(reserve)}

    def _reserve(self) -> list[Place]:
        columns = self.stream.plan.reserve(0)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Place(*row) for row in rows]

    def _read(self, batch_index: int, slot: int, place: Place) -> StreamSample:
        # A stand-in is chosen by a slot of a batch that there is.
        one = SlotPlace(0, batch_index - 1, slot % self.stream.config.num_lanes, place)
        return self.stream.resolve(one, self.stream.attempt(one))


class EvalBatches(MicroStepDataset):
    """Batches of an evaluation by number."""

    def __init__(self, loader: EvalLoader) -> None:
        super().__init__(SyncedReader(loader), 1)
        self._loader = loader

    def __len__(self) -> int:
        """Batches of an evaluation."""
        return self._loader.num_batches
