"""What supervised fine-tuning trains on: images once, behind each its questions and answers.

A group is one image and the records that ask about it. Its *prefix* is what their prompts have in
common, the image among it; behind it come, for each record, the rest of its prompt and its answer.
The loss is on the answers alone. A record by itself is a group whose prefix is its whole prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from grpo_stream.errors import ConfigError
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.collate import IGNORED_LABEL, Batch, PromptCollator
from grpo_stream.train.batches.micro_steps import MicroStepDataset
from grpo_stream.train.supervised.taught_answers import TaughtAnswers

ImageGroup = StreamSample | tuple[StreamSample, ...]
"""A record, or several over one image."""


@dataclass(frozen=True)
class SupervisedCollator:
    """Encodes groups with the answers that are taught.

    Called with this rank's groups of a global batch. Returns ``key``, per record the sample's key,
    and ``micro_batches``: one dict for each run of ``groups_per_micro_batch`` groups, with

    * the images (``pixel_values``, ``patch_rule``, ``image_grid_thw``), ``prompt_ids`` (the
      prefixes) and ``mm_token_type_ids`` as :class:`PromptCollator` has them, once per group;
    * ``sizes``: records of each group;
    * ``tail_ids``: int64, shape (records, longest), what comes behind the prefix, padded on the
      right; ``tail_mask``: 1 where no padding is; ``tail_labels``: the tokens of the answer and the
      end of turn, -100 elsewhere;
    * ``labels`` and ``shift_labels``: int64, those labels without padding, one behind the other,
      which transformers counts (``Trainer._get_num_items_in_batch``, 5.23);
    * ``solution``, ``scales``, ``model_size``, ``answer_frame``: of each group's first record.
    """

    prompts: PromptCollator
    answers: TaughtAnswers
    groups_per_micro_batch: int

    def __call__(self, groups: Sequence[ImageGroup]) -> Batch:
        """See the class."""
        records = [one if isinstance(one, tuple) else (one,) for one in groups]
        step = self.groups_per_micro_batch
        cuts = [records[start : start + step] for start in range(0, len(records), step)]
        return {
            "key": [sample.key for group in records for sample in group],
            "micro_batches": [self._micro_batch(cut) for cut in cuts],
        }

    def _micro_batch(self, groups: list[tuple[StreamSample, ...]]) -> Batch:
        batch = self.prompts([group[0] for group in groups])
        batch["sizes"] = [len(group) for group in groups]
        tails: list[torch.Tensor] = []
        labels: list[torch.Tensor] = []
        for number, group in enumerate(groups):
            prefix = self._add_tails(batch, number, group, tails, labels)
            for name in ("prompt_ids", "mm_token_type_ids"):
                batch[name][number] = batch[name][number][:prefix]
        flat = torch.cat(labels)
        pad = self.prompts.processor.tokenizer.pad_token_id
        return batch | {
            "tail_ids": pad_sequence(tails, batch_first=True, padding_value=pad),
            "tail_mask": pad_sequence([torch.ones_like(t) for t in tails], batch_first=True),
            "tail_labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
            "labels": flat,
            "shift_labels": flat,
        }

    def _add_tails(
        self,
        batch: Batch,
        number: int,
        group: tuple[StreamSample, ...],
        tails: list[torch.Tensor],
        labels: list[torch.Tensor],
    ) -> int:
        """Adds what comes behind the prefix of group ``number``; the prefix's length."""
        if len(group) > 1 and "image_grid_thw" not in batch:
            expected = "is for models that take Qwen-VL's patches; use none"
            raise ConfigError("group_by", "image", expected)
        ids = [batch["prompt_ids"][number]]
        if len(group) > 1:  # of groups each sample has one image
            own = sum(batch["num_images"][:number])
            grid = batch["image_grid_thw"][own]
            ids += [self.prompts.prompt_ids(sample, grid) for sample in group[1:]]
        prefix = _num_common(ids)
        if bool(batch["mm_token_type_ids"][number][max(prefix - 1, 0) :].any()):
            expected = "the model's chat template has words before the image; use group_by=none"
            raise ConfigError("group_by", "image", expected)
        for sample, own in zip(group, ids, strict=True):
            answer = self._encoded_answer(sample)
            tails.append(torch.cat([own[prefix:], answer]))
            labels.append(torch.cat([torch.full_like(own[prefix:], IGNORED_LABEL), answer]))
        return prefix

    def _encoded_answer(self, sample: StreamSample) -> torch.Tensor:
        tokenizer = self.prompts.processor.tokenizer
        text = self.answers.of(sample) + tokenizer.eos_token
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


class MicroBatches(Dataset[Batch]):
    """Maps a micro-step of an epoch to its part of the global batch.

    Args:
        batches: Maps it to the whole of what :class:`SupervisedCollator` gives.
        begin: Is told the keys of a global batch when the first part of it is asked for.
    """

    def __init__(self, batches: MicroStepDataset, begin: Callable[[list[str]], None]) -> None:
        self.reader = batches.reader
        self._batches = batches
        self._begin = begin

    def __len__(self) -> int:
        """Micro-steps of the epoch."""
        return len(self._batches)

    def __getitem__(self, micro_step: int) -> Batch:
        batch = self._batches[micro_step]
        part = micro_step % self._batches.num_repeats
        if not part:
            self._begin(batch["key"])
        found: Batch = batch["micro_batches"][part]
        return found


def _num_common(rows: list[torch.Tensor]) -> int:
    """How many tokens all rows begin with; of one row, all of it."""
    columns: Any = zip(*(row.tolist() for row in rows), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
