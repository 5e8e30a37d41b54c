"""Three ways to compute a group, behind one interface: packed, forked and plain.

=======  ==============================================  =============================
packed   all completions in the prompt's row              text layers that attend fully
forked   all completions behind the prompt's cache        any model with a cache
plain    each completion behind a prompt of its own       any model
=======  ==============================================  =============================

All give the same numbers. Which one a run takes is decided by ``proof.py``.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from grpo_stream.families import PREFIX_LMS
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.base_model import unwrapped
from grpo_stream.train.prefix.backbone import backbone_of, prepare_prompts, prompt_positions
from grpo_stream.train.prefix.forked import sample_forked, score_forked
from grpo_stream.train.prefix.packing import pack_groups, score_packed, shared_prefix_obstacle
from grpo_stream.train.prefix.plain import sample_plain, score_plain
from grpo_stream.train.prefix.router_balance import RouterRecord
from grpo_stream.train.prefix.sampling.decoder import EAGER, Decoder
from grpo_stream.train.prefix.sampling.generation import generate_groups

Scores = tuple[torch.Tensor, torch.Tensor | None]
"""Log-probabilities, and entropies where they are asked for: shape (completions, longest)."""


class PrefixWay(Protocol):
    """How a group is computed."""

    @property
    def name(self) -> str:
        """``packed``, ``forked`` or ``plain``."""
        ...

    def prepare(
        self,
        model: Any,
        groups: PromptGroups,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> PromptGroups:
        """Adds what all passes of a generation batch share.

        Args:
            model: The policy, unwrapped.
            groups: The prompts.
            autocast: The precision of the policy's passes.
        """
        ...

    def score(
        self,
        model: Any,
        groups: PromptGroups,
        completion_ids: torch.Tensor,
        completion_mask: torch.Tensor,
        *,
        compute_entropy: bool,
        router: RouterRecord | None = None,
    ) -> Scores:
        """Log-probabilities (and entropies) of completions, 0 where the mask is.

        Args:
            model: The policy or reference, wrapped or not, with trl's fused head.
            groups: The prompts of all rows.
            completion_ids: int64, shape (completions, longest), padded on the right.
            completion_mask: int or bool, the same shape.
            compute_entropy: Whether entropies are wanted.
            router: Where the router logits of a mixture of experts are kept, if they are wanted.
        """
        ...

    def sample(
        self,
        model: Any,
        groups: PromptGroups,
        generation_config: Any,
        pad_token_id: int,
        decoder: Decoder = EAGER,
    ) -> torch.Tensor:
        """Samples each prompt's completions: int64, shape (completions, longest).

        Args:
            model: Unwrapped; LoRA may be around it.
            groups: The prompts.
            generation_config: transformers' options of sampling, end tokens and length.
            pad_token_id: Fills shorter rows up.
            decoder: What computes a token; plain groups leave that to ``generate``.
        """
        ...


@dataclass(frozen=True)
class Packed:
    """See :mod:`grpo_stream.train.prefix.packing`."""

    attention: str
    """``two_part``, ``dense`` or ``flex``."""
    pad_token_id: int
    """Fills packed rows up."""
    name: str = "packed"

    def prepare(
        self,
        model: Any,
        groups: PromptGroups,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> PromptGroups:
        """Positions, and features of a frozen tower."""
        return prepare_prompts(model, groups, autocast)

    def score(
        self,
        model: Any,
        groups: PromptGroups,
        completion_ids: torch.Tensor,
        completion_mask: torch.Tensor,
        *,
        compute_entropy: bool,
        router: RouterRecord | None = None,  # noqa: ARG002 - no family with experts is packed
    ) -> Scores:
        """All groups in one row."""
        base = unwrapped(model)
        packed = pack_groups(
            groups,
            completion_ids,
            completion_mask,
            prompt_positions(backbone_of(base), groups),
            self.pad_token_id,
            self.attention,
        )
        return score_packed(model, packed, groups, completion_mask, compute_entropy=compute_entropy)

    def sample(
        self,
        model: Any,
        groups: PromptGroups,
        generation_config: Any,
        pad_token_id: int,
        decoder: Decoder = EAGER,
    ) -> torch.Tensor:
        """All groups together."""
        return generate_groups(model, groups, generation_config, pad_token_id, decoder)


@dataclass(frozen=True)
class _GroupByGroup:
    """A way that computes one group after another."""

    name: str
    _score: Callable[..., Scores]
    _sample: Callable[..., torch.Tensor]

    def prepare(
        self,
        model: Any,  # noqa: ARG002
        groups: PromptGroups,
        autocast: Callable[[], AbstractContextManager[Any]],  # noqa: ARG002
    ) -> PromptGroups:
        """Nothing is shared."""
        return groups

    def score(
        self,
        model: Any,
        groups: PromptGroups,
        completion_ids: torch.Tensor,
        completion_mask: torch.Tensor,
        *,
        compute_entropy: bool,
        router: RouterRecord | None = None,
    ) -> Scores:
        """Each group up to its own longest completion."""
        found, start = [], 0
        for group in groups.each():
            rows = slice(start, start + group.num_rows)
            start = rows.stop
            # One token at least: under ZeRO-3 all ranks call the model equally often.
            length = max(1, int(completion_mask[rows].sum(dim=1).max()))
            found.append(
                self._score(
                    model,
                    group,
                    completion_ids[rows, :length],
                    completion_mask[rows, :length],
                    compute_entropy=compute_entropy,
                    router=router,
                )
            )
        log_probs, entropies = zip(*found, strict=True)
        longest = completion_ids.size(1)
        entropy = _stacked(entropies, longest, 0.0) if compute_entropy else None
        return _stacked(log_probs, longest, 0.0), entropy

    def sample(
        self,
        model: Any,
        groups: PromptGroups,
        generation_config: Any,
        pad_token_id: int,
        decoder: Decoder = EAGER,
    ) -> torch.Tensor:
        """Each group by itself."""
        rows = [self._sample(model, group, generation_config, decoder) for group in groups.each()]
        return _stacked(rows, max(part.size(1) for part in rows), pad_token_id)


FORKED: PrefixWay = _GroupByGroup("forked", score_forked, sample_forked)
PLAIN: PrefixWay = _GroupByGroup("plain", score_plain, sample_plain)


def ways_to_try(
    config: Any, wanted: str, *, attention: str | None, packed_attention: str, pad_token_id: int
) -> tuple[list[PrefixWay], list[str]]:
    """The ways that a model may take by its configuration, in order of preference.

    Args:
        config: The model's (transformers 5.23).
        wanted: The setting ``shared_prefix``.
        attention: The ``attn_implementation`` that it will be loaded with; None where it is loaded.
        packed_attention: How packed groups attend.
        pad_token_id: Fills packed rows up.

    Returns:
        The ways, and the reasons against others that were asked for.
    """
    if wanted == "off":
        return [PLAIN], []
    ways: list[PrefixWay] = []
    reasons = []
    shared: tuple[tuple[PrefixWay, str | None], ...] = (
        (Packed(packed_attention, pad_token_id), shared_prefix_obstacle(config, attention)),
        (FORKED, forked_obstacle(config)),
    )
    for way, obstacle in shared:
        if wanted in ("auto", "on", way.name):
            if obstacle is None:
                ways.append(way)
            else:
                reasons.append(f"not {way.name}, {obstacle}")
    return [*ways, *([PLAIN] if wanted == "auto" else [])], reasons


def forked_obstacle(config: Any) -> str | None:
    """Why a model cannot continue a prompt's cache; None where it may.

    Args:
        config: The model's (transformers 5.23).
    """
    if getattr(config, "is_encoder_decoder", False):
        return f"model_type {config.model_type!r} has an encoder for its text"
    if config.model_type in PREFIX_LMS:
        return "its prompt sees itself in both directions: without its last token it is another"
    return None


def _stacked(parts: Sequence[torch.Tensor], width: int, value: float) -> torch.Tensor:
    """Rows of several widths below each other, filled up on the right."""
    return torch.cat(
        [torch.nn.functional.pad(part, (0, width - part.size(1)), value=value) for part in parts]
    )
