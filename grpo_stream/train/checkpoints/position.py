"""Where a run stands and where it ends: transformers counts steps, the stream generation batches.

transformers derives epoch and micro-step from the global step, which holds as long as every epoch
had as many global steps. A run whose number of lanes was changed is not of that kind, so the saved
cursor decides, and the global step only counts what the weights have been through.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.order.cursor import Cursor
from grpo_stream.order.stream_plan import StreamPlan
from grpo_stream.stream.prompt_stream import PromptStream

_MICRO_STEPS = "micro_steps_in_use"


class Position(NamedTuple):
    """A micro-step of an epoch."""

    epoch: int
    micro_step: int


@dataclass(frozen=True)
class StepCount:
    """How micro-steps, global steps and generation batches of a run count each other."""

    plan: StreamPlan
    num_repeats: int
    """Micro-steps per generation batch."""
    micro_steps_per_update: int
    """gradient_accumulation_steps; an epoch's last update may have fewer."""

    def micro_steps_in(self, epoch: int) -> int:
        """Micro-steps of an epoch, or of what segments left of it."""
        return self.plan.num_batches_in(epoch) * self.num_repeats

    def updates_in(self, epoch: int) -> int:
        """Global steps of an epoch, or of what segments left of it."""
        return -(-self.micro_steps_in(epoch) // self.micro_steps_per_update)

    def updates_until(self, start: Position, num_epochs: int) -> int:
        """Global steps from ``start`` to the end of epoch ``num_epochs - 1``."""
        if start.epoch >= num_epochs:
            return 0
        later = self.updates_in(self.plan.segments_epoch + 1)
        return self._updates_left(start) + (num_epochs - start.epoch - 1) * later

    def end(self, start: Position, num_updates: int) -> tuple[int, int]:
        """(epoch, generation batch) before which a run stops that makes ``num_updates`` more."""
        epoch, micro_step = start
        left = self._updates_left(start)
        if num_updates > left:
            per_epoch = self.updates_in(self.plan.segments_epoch + 1)
            epochs, before = divmod(num_updates - left - 1, per_epoch)
            epoch, micro_step, num_updates = epoch + 1 + epochs, 0, before + 1
        micro_step += num_updates * self.micro_steps_per_update
        micro_step = min(micro_step, self.micro_steps_in(epoch))
        return epoch, -(-micro_step // self.num_repeats)

    def _updates_left(self, start: Position) -> int:
        left = self.micro_steps_in(start.epoch) - start.micro_step
        return -(-left // self.micro_steps_per_update)


@dataclass(frozen=True)
class SavedPosition:
    """What a checkpoint's ``cursor.json`` holds."""

    cursor: Cursor
    """The first generation batch that is not done."""
    micro_steps_in_use: tuple[int, int] | None
    """How many micro-steps of that batch are done, of how many; None where nothing says."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return self.cursor.to_dict() | {_MICRO_STEPS: self.micro_steps_in_use}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "SavedPosition":
        """What :meth:`to_dict` wrote; a bare cursor does as well.

        Raises:
            CursorError: it is none.
        """
        in_use = state.get(_MICRO_STEPS) if isinstance(state, dict) else None
        if in_use is not None and not _is_sound(in_use):
            raise CursorError(
                f"{_MICRO_STEPS}={in_use!r} is damaged: start from an older checkpoint"
            )
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name != _MICRO_STEPS}
        return cls(Cursor.from_dict(state), None if in_use is None else (in_use[0], in_use[1]))

    def enter(self, stream: PromptStream, *, allow_new_lanes: bool) -> "SavedPosition":
        """Takes the stream to this position, and returns it as the stream counts it.

        With another number of lanes a new segment begins: over exactly what is left of the
        epoch, the batch in use included.

        Raises:
            CursorError: it belongs to another order, or to another number of lanes without
                ``allow_new_lanes``.
            ConfigError: the stream is a blend that has begun; its lanes cannot change.
        """
        saved, lanes = self, stream.config.num_lanes
        if self.cursor.num_lanes != lanes:
            stream.cursor().check_same_order(replace(self.cursor, num_lanes=lanes))
            if not allow_new_lanes:
                raise CursorError(
                    f"the saved position counts {self.cursor.num_lanes} prompts per generation "
                    f"batch, and the batch sizes now give {lanes}: resume with those it was saved "
                    "with, or continue over what is left of the epoch with allow_new_lanes=True"
                )
            saved = SavedPosition(self.cursor.reopened(lanes), (0, 1))
        stream.resume(saved.cursor)
        place = stream.plan.place_after(saved.cursor.epoch, saved.cursor.batch_index)
        return SavedPosition(stream.cursor(*place), saved.micro_steps_in_use)

    def micro_step(self, num_repeats: int) -> int:
        """Micro-steps of the epoch that are done, with ``num_repeats`` per generation batch.

        A batch in use is begun anew where it would now be cut into another number of them.
        """
        done, of = self.micro_steps_in_use or (0, num_repeats)
        return self.cursor.batch_index * num_repeats + (done if of == num_repeats else 0)


def _is_sound(in_use: object) -> bool:
    return (
        isinstance(in_use, list)
        and len(in_use) == len(("done", "of"))
        and all(type(number) is int for number in in_use)
        and 0 <= in_use[0] < in_use[1]
    )


def check_updates(start: Position, steps: StepCount) -> None:
    """Checks that an update can begin at ``start``.

    Raises:
        ConfigError: it is within one, as transformers counts them from the epoch's start.
    """
    if start.micro_step % steps.micro_steps_per_update:
        raise ConfigError(
            "gradient_accumulation_steps",
            steps.micro_steps_per_update,
            f"must divide the {start.micro_step} micro-steps of the epoch that are done, for "
            f"example {steps.num_repeats}",
        )


def check_whole_epochs(num_train_epochs: float) -> None:
    """Checks that a run whose batch sizes were changed knows its end.

    Raises:
        ConfigError: a part of an epoch, of which there is no number of global steps.
    """
    if num_train_epochs != int(num_train_epochs):
        expected = "must be whole where batch sizes were changed; use max_steps instead"
        raise ConfigError("num_train_epochs", num_train_epochs, expected)
