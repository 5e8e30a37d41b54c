"""The packed group: a prompt's tokens once, and behind them all of its completions.

In grounding the prompt (an image) is many times longer than the answer, and the usual layout
computes it once per completion. Here a group is laid out as::

    [ prefix without its last token | last, c1 | last, c2 | ... | last, cG ]

Every completion opens with its own copy of the prompt's last token, at the same position, and sees
the prefix and itself alone; so one pass scores all first tokens rightly. Positions restart after
the prefix on all three axes of M-RoPE. The vision tower runs once per group.

A completion's own last token predicts nothing and is left out. The groups of a micro-batch stand
in one row, one behind the other, without padding between images of different sizes; only for the
dense mask, which has L x L entries, each in a row of its own.

Shapes: N completions of all groups, C longest completion, B packed rows, L longest of them.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from grpo_stream.families import FAMILIES
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.prefix.attention import SHARED_PREFIX, GroupSpan, TwoPart
from grpo_stream.train.prefix.backbone import image_kwargs
from grpo_stream.train.prefix.spare_image import tower_is_called

_IGNORED = -100
_PADDING = -1

_ATTENTION = ("sdpa", SHARED_PREFIX)


def shared_prefix_obstacle(config: Any, attention: str | None = None) -> str | None:
    """Why a model cannot compute a group's prompt once; None where it can.

    Args:
        config: The model's configuration (transformers 5.23).
        attention: The ``attn_implementation`` that it will be loaded with; None where it is loaded.
    """
    packed = [model_type for model_type, family in FAMILIES.items() if family.is_packed]
    if config.model_type not in packed:
        return f"model_type {config.model_type!r} is not one of {', '.join(packed)}"
    text = config.get_text_config()
    attention = attention or text._attn_implementation  # noqa: SLF001 - there is no public name
    if attention not in _ATTENTION:
        return f"attn_implementation {attention!r} knows no shared prefix; use {_ATTENTION[0]!r}"
    if getattr(text, "use_sliding_window", False):
        return "use_sliding_window would cut the prefix off"
    return None


@dataclass(frozen=True, eq=False)
class PackedGroups:
    """Model inputs for packed groups; rows are padded on the right."""

    input_ids: torch.Tensor
    """int64, shape (B, L)."""
    position_ids: torch.Tensor
    """int64, shape (3, B, L)."""
    shift_labels: torch.Tensor
    """int64, shape (B, L): the completion token that each position predicts; -100 for none."""
    shared_prefix: TwoPart | None
    """Who sees whom, for :mod:`grpo_stream.train.prefix.attention`, or"""
    attention_mask: torch.Tensor | BlockMask | None
    """the same as bool of shape (B, 1, L, L), query and key, or for flex attention."""


@dataclass(frozen=True)
class _Lengths:
    """Of one group's parts, in tokens; no completion is empty."""

    prefix: int
    completions: list[int]


def pack_groups(
    groups: PromptGroups,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    positions: list[torch.Tensor],
    pad_token_id: int,
    attention: str = "two_part",
) -> PackedGroups:
    """Lays each prompt's completions behind it.

    Args:
        groups: The prompts, and how many of the rows belong to each.
        completion_ids: int64, shape (N, C), padded on the right.
        completion_mask: int or bool, shape (N, C); a row of zeros is left out.
        positions: Of the prompts, from :func:`grpo_stream.train.prefix.backbone.prompt_positions`.
        pad_token_id: Fills rows up.
        attention: ``two_part``, ``dense`` or ``flex``.
    """
    counts = completion_mask.sum(dim=1).tolist()
    ends = accumulate(groups.sizes)
    rows, lengths = [], []
    for ids, own, size, end in zip(groups.prompt_ids, positions, groups.sizes, ends, strict=True):
        completions = [completion_ids[i, : counts[i]] for i in range(end - size, end) if counts[i]]
        rows.append(_pack_group(ids, own, completions))
        lengths.append(_Lengths(len(ids) - 1, [len(completion) for completion in completions]))
    ids_of, labels_of, positions_of = (list(part) for part in zip(*rows, strict=True))
    if attention != "dense":
        ids_of, labels_of, positions_of = (
            [torch.cat(part)] for part in (ids_of, labels_of, positions_of)
        )
    device = completion_ids.device
    mask: torch.Tensor | BlockMask | None = None
    if attention != "two_part":
        mask = (
            _dense_mask(lengths, device) if attention == "dense" else _block_mask(lengths, device)
        )
    return PackedGroups(
        input_ids=_pad(ids_of, pad_token_id),
        position_ids=_pad(positions_of, 0).permute(2, 0, 1),
        shift_labels=_pad(labels_of, _IGNORED),
        shared_prefix=_two_part(lengths, device) if attention == "two_part" else None,
        attention_mask=mask,
    )


def score_packed(
    model: Any,
    packed: PackedGroups,
    groups: PromptGroups,
    completion_mask: torch.Tensor,
    *,
    compute_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (and entropies) of the completions, by one ordinary forward.

    Args:
        model: The policy or reference, wrapped or not, with trl's fused head (trl 1.16,
            ``add_fused_lm_head``) and the attention of
            :func:`grpo_stream.train.prefix.attention.use_shared_prefix_attention`.
        packed: Its inputs.
        groups: The prompts of ``packed``, for their images.
        completion_mask: Shape (N, C).
        compute_entropy: Whether entropies are wanted.

    Returns:
        Two float tensors of shape (N, C), 0 where the mask is; the second may be None.
    """
    with tower_is_called(model, groups):
        output = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=packed.attention_mask,
            shared_prefix=packed.shared_prefix,
            shift_labels=packed.shift_labels,
            fused_lm_head=True,
            **image_kwargs(groups),
        )
    scored = packed.shift_labels != _IGNORED
    mask = completion_mask.bool()

    # Both masks run through prompts, completions and tokens in the same order.
    def unpacked(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values[scored])

    entropy = unpacked(output.entropy) if compute_entropy else None
    return unpacked(output.log_probs), entropy


def _pack_group(
    ids: torch.Tensor, positions: torch.Tensor, completions: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens and labels of one group, shape (tokens,), and positions, shape (tokens, 3)."""
    prefix, opening = ids[:-1], ids[-1:]
    tokens, labels = [prefix], [torch.full_like(prefix, _IGNORED)]
    places = [positions[:, :-1]]
    for completion in completions:
        tokens += [opening, completion[:-1]]
        labels.append(completion)
        places.append(positions[:, -1:] + torch.arange(len(completion), device=ids.device))
    return torch.cat(tokens), torch.cat(labels), torch.cat(places, dim=1).T


def _two_part(lengths: list[_Lengths], device: torch.device) -> TwoPart:
    spans, start = [], 0
    for group in lengths:
        counts = torch.tensor(group.completions, dtype=torch.long)
        begins = counts.cumsum(0) - counts
        longest = max(group.completions, default=0)
        steps = torch.arange(longest)
        is_token = steps < counts[:, None]
        own = torch.where(is_token, begins[:, None] + steps, 0)
        kept = is_token.flatten().nonzero().flatten()
        spans.append(GroupSpan(start, group.prefix, own.to(device), kept.to(device)))
        start += group.prefix + sum(group.completions)
    return TwoPart(spans)


def _segments(lengths: list[_Lengths], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of each token's part of the row, and that of its group's prefix: (L,) each."""
    counts = [[group.prefix, *group.completions] for group in lengths]
    sizes = torch.tensor([len(group) for group in counts])
    prefixes = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    flat = torch.tensor([count for group in counts for count in group])
    segments = torch.arange(len(flat)).repeat_interleave(flat)
    return segments.to(device), prefixes.repeat_interleave(flat).to(device)


def _dense_mask(lengths: list[_Lengths], device: torch.device) -> torch.Tensor:
    """Who sees whom: earlier tokens of the own part, and the prefix; a group in a row of its own.

    Padding is at the end, so that nobody but padding sees it.
    """
    rows = [_segments([group], device) for group in lengths]
    own = _pad([segments for segments, _ in rows], _PADDING)
    prefix = _pad([prefixes for _, prefixes in rows], _PADDING)
    causal = torch.ones(own.size(1), own.size(1), dtype=torch.bool, device=device).tril()
    keys = own[:, None, :]
    return (causal & ((own[:, :, None] == keys) | (prefix[:, :, None] == keys)))[:, None]


def _block_mask(lengths: list[_Lengths], device: torch.device) -> BlockMask:
    """The same for flex attention, over all groups in one row."""
    own, prefix = _segments(lengths, device)

    def sees(
        _row: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        shared = (own[query] == own[key]) | (prefix[query] == own[key])
        return (query >= key) & shared

    return create_block_mask(sees, 1, None, len(own), len(own), device=str(device))


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
