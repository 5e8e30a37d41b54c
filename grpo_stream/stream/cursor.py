"""A saved place in the order: a handful of integers, the same on every rank."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from grpo_stream.errors import CursorError

_VERSION = 1


@dataclass(frozen=True)
class Cursor:
    """The next generation batch to be delivered, and the order that it is counted in.

    The order is bound to the data by the manifest's digest, not by its path, so a data set may
    be moved between two runs but not changed.
    """

    digest: str
    """The manifest's digest."""
    seed: int
    num_lanes: int
    block_shards: int
    epoch: int = 0
    """Counted from 0."""
    batch_index: int = 0
    """Generation batches of the epoch that are done."""
    version: int = _VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Cursor":
        """The cursor that :meth:`to_dict` wrote.

        Raises:
            CursorError: not a cursor, or one of another version.
        """
        if not isinstance(state, dict):
            raise CursorError(f"{state!r} is no cursor: an object with its fields is expected")
        if state.get("version") != _VERSION:
            raise CursorError(
                f"cursor version {state.get('version')!r}, expected {_VERSION}: it was saved by "
                "another version of grpo_stream; start a new run"
            )
        names = {f.name for f in fields(cls)}
        if set(state) != names:
            raise CursorError(f"a cursor has the fields {sorted(names)}, found {sorted(state)}")
        for name, value in state.items():
            is_right = type(value) is str if name == "digest" else type(value) is int and value >= 0
            if not is_right:
                raise CursorError(f"{name}={value!r} is damaged: start from an older checkpoint")
        return cls(**state)

    def check_same_order(self, saved: "Cursor") -> None:
        """Checks that ``saved`` counts in the order of this cursor.

        Raises:
            CursorError: naming every setting that differs.
        """
        names = {
            "digest": "the data set (manifest digest)",
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
