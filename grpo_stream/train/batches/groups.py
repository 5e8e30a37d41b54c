"""The prompts of a micro-batch and how many completions each has: groups, kept whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from grpo_stream.train.batches.collate import Batch, Media
from grpo_stream.train.models.patches import image_inputs

# Columns of a batch that reward functions receive; the record's own fields come beside them.
_REWARD_COLUMNS = ("prompt", "solution", "scales", "model_size", "answer_frame", "key")
# trl reads these columns itself, or passes values of its own under these names.
_TRL_COLUMNS = frozenset(
    {
        "image", "images", "environment", "completions", "completion", "completion_ids",
        "prompts", "trainer_state", "log_extra", "log_metric", "environments",
    }
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PromptGroups:
    """Prompts with their images, each followed by a run of completions.

    Rows of trl's tensors belong to prompts in order: the first ``sizes[0]`` rows to prompt 0, and
    so on. Images are held once per prompt.
    """

    prompt_ids: list[torch.Tensor]
    """Per prompt int64, shape (prompt length,)."""
    mm_token_type_ids: list[torch.Tensor]
    """Per prompt int64, the same shape: 0 text, 1 image."""
    media: list[Media]
    """Per prompt its images, whatever their number: tensors (or lists) as its processor makes them
    of this prompt alone; empty without images. Qwen-VL's: ``pixel_values``, float, shape (patches,
    patch dimension), and ``image_grid_thw``, int64, shape (images, 3)."""
    sizes: list[int]
    """Completions per prompt."""
    positions: list[torch.Tensor] | None = None
    """Per prompt int64, shape (3, prompt length): of M-RoPE, where they have been computed."""
    image_features: tuple[torch.Tensor, ...] | None = None
    """Per prompt, shape (1 + D, image tokens, hidden size), from ``backbone.encode_images``: of a
    vision tower that is not trained, where they have been computed."""
    types_name: str | None = "mm_token_type_ids"
    """What the model calls its token types; None where it has none."""
    keys: tuple[str, ...] = ()
    """Per prompt the key of its sample, where a batch tells it."""
    spare: Media | None = None
    """A small image that the vision tower is called with where a pass has none (``spare_image``);
    None where it need not be called then."""

    @classmethod
    def from_batch(
        cls, batch: Batch, num_generations: int, device: torch.device, *, num_ranks: int = 1
    ) -> "PromptGroups":
        """Whole groups of ``num_generations`` completions for a collated batch.

        Images are normalised and cut into patches here, on ``device``, once per prompt.

        Args:
            batch: Collated.
            num_generations: Completions of each prompt.
            device: The model's.
            num_ranks: Of the run; several have to call the vision tower equally often.
        """
        spare = batch.get("spare_media") if num_ranks > 1 else None
        return cls(
            prompt_ids=[ids.to(device) for ids in batch["prompt_ids"]],
            mm_token_type_ids=[ids.to(device) for ids in batch["mm_token_type_ids"]],
            media=_media(batch, device),
            sizes=[num_generations] * len(batch["prompt_ids"]),
            types_name=batch.get("types_name", cls.types_name),
            keys=tuple(batch.get("key", ())),
            spare=None if spare is None else _moved(device, spare),
        )

    @property
    def num_rows(self) -> int:
        """Completions of all prompts."""
        return sum(self.sizes)

    def rows(self, start: int, stop: int) -> "PromptGroups":
        """The prompts that completions [start, stop) belong to, with as many as are in there."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        starts = [end - size for end, size in zip(ends, self.sizes, strict=True)]
        kept = [i for i in range(len(ends)) if starts[i] < stop and ends[i] > start]
        prompts = slice(kept[0], kept[-1] + 1)
        return replace(
            self,
            prompt_ids=self.prompt_ids[prompts],
            mm_token_type_ids=self.mm_token_type_ids[prompts],
            media=self.media[prompts],
            sizes=[min(stop, ends[i]) - max(start, starts[i]) for i in kept],
            positions=None if self.positions is None else self.positions[prompts],
            image_features=None if self.image_features is None else self.image_features[prompts],
            keys=self.keys[prompts],
        )

    @classmethod
    def joined(cls, parts: Sequence["PromptGroups"]) -> "PromptGroups":
        """The prompts of several, one behind the other."""
        positions = [part.positions for part in parts if part.positions is not None]
        features = [part.image_features for part in parts if part.image_features is not None]
        return cls(
            prompt_ids=[ids for part in parts for ids in part.prompt_ids],
            mm_token_type_ids=[types for part in parts for types in part.mm_token_type_ids],
            media=[own for part in parts for own in part.media],
            sizes=[size for part in parts for size in part.sizes],
            positions=[own for part in positions for own in part] or None,
            image_features=tuple(own for part in features for own in part) or None,
            types_name=parts[0].types_name,
            keys=tuple(key for part in parts for key in part.keys),
            spare=next((part.spare for part in parts if part.spare is not None), None),
        )

    def each(self) -> Iterator["PromptGroups"]:
        """One prompt after another, with its completions."""
        end = 0
        for size in self.sizes:
            end += size
            yield self.rows(end - size, end)

    @property
    def has_images(self) -> bool:
        """Any prompt has one."""
        return any(self.media)

    def images(self) -> Media:
        """The images of all prompts, one behind the other, where the model takes them so."""
        media = [own for own in self.media if own]
        return {name: _joined([own[name] for own in media]) for name in media[0]} if media else {}

    def token_types(self, prompt_length: int, completion_length: int) -> torch.Tensor:
        """Types of padded rows: without them M-RoPE falls back to text positions.

        Args:
            prompt_length: Of the prompts, padded on the left.
            completion_length: Of the completions, padded on the right; they hold no images.

        Returns:
            int64, shape (completions, prompt_length + completion_length).
        """
        rows = [
            torch.nn.functional.pad(types, (prompt_length - len(types), completion_length))
            for types, size in zip(self.mm_token_type_ids, self.sizes, strict=True)
            for _ in range(size)
        ]
        return torch.stack(rows)


def reward_rows(batch: Batch, num_generations: int) -> list[dict[str, Any]]:
    """One mapping per completion, ``num_generations`` in a row per prompt: references, no copies.

    A record's own fields become columns; a field that some records lack is None there.
    """
    extras = batch["extra"]
    names = {name for extra in extras for name in extra} - _TRL_COLUMNS - set(_REWARD_COLUMNS)
    rows: list[dict[str, Any]] = []
    for i, extra in enumerate(extras):
        row = {name: batch[name][i] for name in _REWARD_COLUMNS}
        row.update({name: extra.get(name) for name in sorted(names)})
        rows.extend([row] * num_generations)
    return rows


def check_groups(keys: Sequence[str], num_generations: int) -> None:
    """Checks that each run of ``num_generations`` completions has one key.

    Advantages are computed over such runs; a mixed group would teach nonsense, silently.

    Raises:
        RuntimeError: naming the first group that is mixed.
    """
    if len(keys) % num_generations:
        raise RuntimeError(
            f"{len(keys)} completions are no whole number of groups of {num_generations}"
        )
    for start in range(0, len(keys), num_generations):
        group = set(keys[start : start + num_generations])
        if len(group) != 1:
            number = start // num_generations
            raise RuntimeError(f"group {number} mixes the prompts {sorted(group)}")


def cut_micro_batches(
    scored: dict[str, Any], groups: PromptGroups, num_micro_batches: int
) -> list[dict[str, Any]]:
    """Cuts a scored generation batch into micro-batches along rows, keeping their order.

    trl 1.16 (``GRPOTrainer._prepare_inputs``) shuffles the rows first, which would part
    completions from their prompts here.

    Args:
        scored: trl's dict of tensors with one row per completion; other values go to all.
        groups: The prompts of those rows.
        num_micro_batches: trl's ``steps_per_generation``.

    Returns:
        Dicts like ``scored`` with the micro-batch's prompts under ``groups``.
    """
    num_rows = groups.num_rows
    length = num_rows // num_micro_batches
    micro_batches = []
    for start in range(0, length * num_micro_batches, length):
        stop = start + length
        micro_batch: dict[str, Any] = {
            name: value[start:stop] if _has_rows(value, num_rows) else value
            for name, value in scored.items()
        }
        micro_batch["groups"] = groups.rows(start, stop)
        micro_batches.append(micro_batch)
    return micro_batches


def _has_rows(value: object, num_rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.size(0) == num_rows


def pad_left(rows: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    """``rows`` of differing lengths as one tensor, shape (rows, longest, ...), filled in front."""
    return torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=value, padding_side="left"
    )


def _media(batch: Batch, device: torch.device) -> list[Media]:
    if "media" in batch:  # a processor's own
        return [_moved(device, own) for own in batch["media"]]
    pixel_values, image_grid_thw = image_inputs(batch, device)
    grids = image_grid_thw.split(batch.get("num_images") or [1] * len(batch["prompt_ids"]))
    patches = pixel_values.split([int(grid.prod(dim=-1).sum()) for grid in grids])
    return [
        {"pixel_values": own, "image_grid_thw": grid} if len(grid) else {}
        for own, grid in zip(patches, grids, strict=True)
    ]


def _moved(device: torch.device, media: Media) -> Media:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in media.items()
    }


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
