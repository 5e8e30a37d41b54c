"""Model inputs for supervised fine-tuning: groups packed in one row, or a row for each record.

Packed as in :mod:`grpo_stream.train.prefix.packing`: an image and the words that its records share
are computed once, each question with its answer sees them and itself, and there is no padding. A
row by itself gives the same log-probabilities.
"""

from dataclasses import replace
from typing import Any

import torch

from grpo_stream.train.batches.collate import IGNORED_LABEL, Batch
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.prefix.backbone import (
    accepted_media,
    backbone_of,
    image_kwargs,
    prompt_positions,
)
from grpo_stream.train.prefix.packing import pack_groups


def packed_inputs(
    model: Any, batch: Batch, pad_token_id: int, device: torch.device
) -> dict[str, Any]:
    """One row that holds all groups of a micro-batch.

    Args:
        model: The policy, unwrapped, with the attention of
            :func:`grpo_stream.train.prefix.attention.use_shared_prefix_attention`.
        batch: A micro-batch of
            :class:`grpo_stream.train.supervised.supervised_batches.SupervisedCollator`.
        pad_token_id: Of the tokenizer.
        device: The model's.

    Returns:
        Arguments of a model with trl's fused head (trl 1.16). The attention mask is all ones: trl
        counts tokens by it.
    """
    groups = _groups(batch, device)
    mask, labels = batch["tail_mask"].to(device), batch["tail_labels"].to(device)
    positions = prompt_positions(backbone_of(model), groups)
    packed = pack_groups(groups, batch["tail_ids"].to(device), mask, positions, pad_token_id)
    # Every token of a tail is predicted by one place of the row, in the same order.
    shift_labels = packed.shift_labels.masked_scatter(
        packed.shift_labels != IGNORED_LABEL, labels[mask.bool()]
    )
    return {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids,
        "attention_mask": torch.ones_like(packed.input_ids),
        "shared_prefix": packed.shared_prefix,
        "labels": shift_labels,
        "shift_labels": shift_labels,
        **image_kwargs(groups),
    }


def plain_inputs(
    model: Any, batch: Batch, pad_token_id: int, device: torch.device
) -> dict[str, Any]:
    """A row for each record, with its own copy of the images; as :func:`packed_inputs`.

    Padding is at the end, so that no token sees any, whatever the model's layers are.
    """
    groups = _groups(batch, device)
    rows, labels, types = [], [], []
    masks = batch["tail_mask"].bool()
    of_record = [number for number, size in enumerate(groups.sizes) for _ in range(size)]
    for record, number in enumerate(of_record):
        prompt, kept = groups.prompt_ids[number], masks[record]
        tail, taught = (batch[n][record][kept].to(device) for n in ("tail_ids", "tail_labels"))
        rows.append(torch.cat([prompt, tail]))
        labels.append(torch.cat([torch.full_like(prompt, IGNORED_LABEL), taught]))
        types.append(torch.cat([groups.mm_token_type_ids[number], torch.zeros_like(tail)]))
    images = replace(groups, media=[groups.media[number] for number in of_record]).images()
    inputs = {
        "input_ids": _padded(rows, pad_token_id),
        "attention_mask": _padded([torch.ones_like(row) for row in rows], 0),
        "labels": _padded(labels, IGNORED_LABEL),
        **accepted_media(model, images),
    }
    if groups.types_name is not None:
        inputs[groups.types_name] = _padded(types, 0)
    return inputs


def _padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def _groups(batch: Batch, device: torch.device) -> PromptGroups:
    return replace(PromptGroups.from_batch(batch, 1, device), sizes=batch["sizes"])
