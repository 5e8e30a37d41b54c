"""A saved place in the order: a handful of integers, the same on every rank."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.order.epoch_plan import Segments

_VERSION = 2
_DEFAULTS_OF_VERSION_1 = {"weights": "1", "segments": [], "version": _VERSION}


@dataclass(frozen=True)
class Cursor:
    """The next generation batch to be delivered, and the order that it is counted in.

    The order is bound to the data by the manifests' digests, not by paths, so a data set may be
    moved between two runs but not changed.
    """

    digest: str
    """The manifest's digest; of several data sets, all of them in ascending order, ``+`` between
    them."""
    seed: int
    num_lanes: int
    block_shards: int
    epoch: int = 0
    """Counted from 0."""
    batch_index: int = 0
    """Generation batches of the epoch, or of its present segment, that are done."""
    weights: str = "1"
    """Shares of the data sets as fractions that add up to one, in the digests' order."""
    segments: Segments = ()
    """(number of lanes, batches done) of the epoch's finished segments; see ``plan.py``."""
    version: int = _VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"segments": [list(segment) for segment in self.segments]}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Cursor":
        """The cursor that :meth:`to_dict` wrote, in this version or in version 1.

        Raises:
            CursorError: not a cursor, or one of another version.
        """
        if not isinstance(state, dict):
            raise CursorError(f"{state!r} is no cursor: an object with its fields is expected")
        if state.get("version") not in {1, _VERSION}:
            raise CursorError(
                f"cursor version {state.get('version')!r}, expected 1 or {_VERSION}: it was saved "
                "by another version of grpo_stream; start a new run"
            )
        names = {f.name for f in fields(cls)}
        if state["version"] == 1:  # one data set, no segments
            names -= {"weights", "segments"}
        if set(state) != names:
            raise CursorError(f"a cursor has the fields {sorted(names)}, found {sorted(state)}")
        if state["version"] == 1:
            state = state | _DEFAULTS_OF_VERSION_1
        for name, value in state.items():
            if not _is_sound(name, value):
                raise CursorError(f"{name}={value!r} is damaged: start from an older checkpoint")
        segments = tuple((num_lanes, num_done) for num_lanes, num_done in state["segments"])
        return cls(**state | {"segments": segments})

    def check_same_order(self, saved: "Cursor") -> None:
        """Checks that ``saved`` counts in the order of this cursor.

        Segments belong to the place, not to the settings, and are not compared.

        Raises:
            CursorError: naming every setting that differs.
        """
        names = {
            "digest": "the data set (manifest digest) or the choice of its samples",
            "weights": "weights of the data sets",
            "seed": "seed",
            "num_lanes": "prompts per generation batch",
            "block_shards": "block_shards",
        }
        differs = [
            f"{words}: saved {getattr(saved, name)!r}, now {getattr(self, name)!r}"
            for name, words in names.items()
            if getattr(saved, name) != getattr(self, name)
        ]
        if differs:
            raise CursorError(
                "the saved position belongs to another order; " + "; ".join(differs) + ". "
                "Resume with the settings it was saved with, or start a new run"
            )

    def reopened(self, num_lanes: int) -> "Cursor":
        """The place from which ``num_lanes`` lanes read exactly what is left of the epoch.

        A new segment begins there; the epochs that follow have ``num_lanes`` lanes from their
        start.

        Raises:
            ConfigError: ``num_lanes`` is not positive, or the cursor is one of a blend that has
                begun: its sources are in the middle of different epochs.
        """
        if num_lanes < 1:
            raise ConfigError("num_lanes", num_lanes, "must be a whole number of at least 1")
        if num_lanes == self.num_lanes:
            return self
        if "+" in self.digest and (self.epoch, self.batch_index) != (0, 0):
            raise ConfigError(
                "num_lanes",
                num_lanes,
                "the number of prompts per generation batch of a blend cannot change after its "
                f"start; continue with {self.num_lanes}",
            )
        done = ((self.num_lanes, self.batch_index),) if self.batch_index else ()
        return replace(self, num_lanes=num_lanes, batch_index=0, segments=(*self.segments, *done))


def _is_sound(name: str, value: object) -> bool:
    if name in {"digest", "weights"}:
        return type(value) is str
    if name == "segments":
        return isinstance(value, list) and all(
            isinstance(segment, list)
            and len(segment) == 2
            and all(type(number) is int for number in segment)
            and segment[0] >= 1
            and segment[1] >= 0
            for segment in value
        )
    return type(value) is int and value >= 0
