"""The packed group: a prompt's tokens once, and behind them all of its completions.

In grounding the prompt (an image) is many times longer than the answer, and the usual layout
computes it once per completion. Here a group is one row::

    [ prefix without its last token | last, c1 | last, c2 | ... | last, cG ]

Every completion opens with its own copy of the prompt's last token, at the same position, and sees
the prefix and itself alone; so one row scores all first tokens rightly. Positions restart after
the prefix on all three axes of M-RoPE. The vision tower runs once per group.

A completion's own last token predicts nothing and is left out. Shapes: B prompts of the
micro-batch, N completions of all of them, C longest completion, L longest packed row.
"""

from dataclasses import dataclass
from typing import Any

import torch

from grpo_stream.train.groups import PromptGroups

_IGNORED = -100
_PADDING, _PREFIX = -1, 0

_MODEL_TYPES = ("qwen2_5_vl",)  # those that a test holds to the plain forward
_ATTENTION = ("sdpa", "eager")


def shared_prefix_obstacle(config: Any) -> str | None:
    """Why a model cannot compute a group's prompt once; None where it can.

    Args:
        config: The model's configuration (transformers 5.23).
    """
    if config.model_type not in _MODEL_TYPES:
        return f"model_type {config.model_type!r} is not one of {', '.join(_MODEL_TYPES)}"
    attention = config._attn_implementation  # noqa: SLF001 - transformers has no public name
    if attention not in _ATTENTION:
        return f"attn_implementation {attention!r} takes no 4-D mask; use {_ATTENTION[0]!r}"
    if getattr(config.get_text_config(), "use_sliding_window", False):
        return "use_sliding_window would cut the prefix off"
    return None


@dataclass(frozen=True, eq=False)
class PackedGroups:
    """Model inputs for packed groups, one row per prompt, padded on the right."""

    input_ids: torch.Tensor
    """int64, shape (B, L)."""
    position_ids: torch.Tensor
    """int64, shape (3, B, L)."""
    attention_mask: torch.Tensor
    """bool, shape (B, 1, L, L): query, key."""
    shift_labels: torch.Tensor
    """int64, shape (B, L): the completion token that each position predicts; -100 for none."""


def pack_groups(
    groups: PromptGroups,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    prefix_positions: list[torch.Tensor],
    pad_token_id: int,
) -> PackedGroups:
    """Lays each prompt and its completions into one row.

    Args:
        groups: The prompts, and how many of the rows belong to each.
        completion_ids: int64, shape (N, C), padded on the right.
        completion_mask: int or bool, shape (N, C); a row of zeros is left out.
        prefix_positions: Per prompt int64, shape (3, prompt length), from ``get_rope_index``.
        pad_token_id: Fills rows up.
    """
    device = completion_ids.device
    lengths = completion_mask.sum(dim=1).tolist()
    rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    first = 0
    for ids, positions, size in zip(groups.prompt_ids, prefix_positions, groups.sizes, strict=True):
        prefix, opening = ids[:-1], ids[-1:]
        row_ids, row_labels = [prefix], [torch.full_like(prefix, _IGNORED)]
        row_positions, row_segments = [positions[:, :-1]], [torch.full_like(prefix, _PREFIX)]
        for number in range(size):
            length = lengths[first + number]
            if not length:
                continue
            completion = completion_ids[first + number, :length]
            steps = torch.arange(length, device=device)
            row_ids += [opening, completion[:-1]]
            row_labels.append(completion)
            row_positions.append(positions[:, -1:] + steps)
            row_segments.append(torch.full_like(steps, number + 1))
        first += size
        rows.append(
            (
                torch.cat(row_ids),
                torch.cat(row_labels),
                torch.cat(row_positions, dim=1).T,
                torch.cat(row_segments),
            )
        )
    ids_of, labels_of, positions_of, segments_of = zip(*rows, strict=True)
    segments = _pad(segments_of, _PADDING)
    return PackedGroups(
        input_ids=_pad(ids_of, pad_token_id),
        position_ids=_pad(positions_of, 0).permute(2, 0, 1),
        attention_mask=_mask(segments),
        shift_labels=_pad(labels_of, _IGNORED),
    )


def prefix_positions(backbone: Any, groups: PromptGroups) -> list[torch.Tensor]:
    """M-RoPE positions of each prompt.

    Args:
        backbone: The module with ``get_rope_index`` (``Qwen2_5_VLModel``, transformers 5.23).
        groups: The prompts; ``groups.positions`` are given back where they are there.

    Returns:
        Per prompt int64, shape (3, prompt length).
    """
    if groups.positions is not None:
        return groups.positions
    return [
        backbone.get_rope_index(ids[None], types[None], image_grid_thw=grid[None])[0][:, 0]
        for ids, types, grid in zip(
            groups.prompt_ids, groups.mm_token_type_ids, groups.image_grid_thw, strict=True
        )
    ]


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
            ``add_fused_lm_head``).
        packed: Its inputs.
        groups: The prompts of ``packed``, for their images.
        completion_mask: Shape (N, C).
        compute_entropy: Whether entropies are wanted.

    Returns:
        Two float tensors of shape (N, C), 0 where the mask is; the second may be None.
    """
    output = model(
        input_ids=packed.input_ids,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        pixel_values=groups.pixel_values,
        image_grid_thw=groups.image_grid_thw,
        shift_labels=packed.shift_labels,
        fused_lm_head=True,
    )
    scored = packed.shift_labels != _IGNORED
    mask = completion_mask.bool()

    # Both masks run through prompts, completions and tokens in the same order.
    def unpacked(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values[scored])

    entropy = unpacked(output.entropy) if compute_entropy else None
    return unpacked(output.log_probs), entropy


def _mask(segments: torch.Tensor) -> torch.Tensor:
    """Who sees whom: earlier tokens of the own segment, and the prefix. (B, L) -> (B, 1, L, L).

    Padding lies at the end, so that nobody but padding sees it.
    """
    length = segments.size(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    own = segments[:, :, None] == segments[:, None, :]
    prefix = (segments == _PREFIX)[:, None, :]
    return (causal & (own | prefix))[:, None]


def _pad(rows: tuple[torch.Tensor, ...], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
