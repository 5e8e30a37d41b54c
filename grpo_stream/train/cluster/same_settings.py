"""One check before anything expensive: all ranks are about to do the same run."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list, gather_object

import grpo_stream
from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.deepspeed_config import load_zero_config

if TYPE_CHECKING:
    from grpo_stream.train.setup.run_plan import Settings
    from grpo_stream.train.supervised.supervised_plan import SupervisedSettings

_PLACES = frozenset({"output_dir", "shards", "eval_shards", "json", "images_root", "cache_dir"})
"""Where a node keeps things is its own business: of data the digests are compared."""
_PER_RANK = frozenset({"local_rank", "hub_token", "disable_tqdm", "log_level", "log_level_replica"})
_MAX_NAMED = 4

Differences = dict[str, Any]
"""Name of a setting -> what a rank has in the place of rank 0's value."""


def run_settings(settings: "Settings | SupervisedSettings") -> dict[str, Any]:
    """All that must be the same on every rank and is known before the data are opened.

    Of trl's settings, ``ModelConfig``, data and task every field, by its name; but for folders,
    which a node may have elsewhere, and what is a rank's own. ``deepspeed`` is the file's content.
    """
    fields = settings.args.to_dict() | vars(settings.model)
    fields |= vars(settings.data) | vars(settings.task)
    if isinstance(fields["deepspeed"], str):
        fields["deepspeed"] = load_zero_config(fields["deepspeed"])
    compared = {k: v for k, v in fields.items() if k not in _PLACES | _PER_RANK}
    return compared | {f"version of {name}": value for name, value in versions().items()}


def versions() -> dict[str, str]:
    """Versions that change numbers when they differ between ranks; of this package the code too."""
    names = ("torch", "transformers", "trl", "accelerate", "deepspeed", "numpy", "pillow")
    return {
        "grpo_stream": f"{grpo_stream.__version__}+{code_digest()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def code_digest() -> str:
    """Twelve hex digits that change with any source file of this package."""
    folder = Path(grpo_stream.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def as_text(value: Any) -> str:
    """A setting's value as JSON, for comparing and for people; what JSON lacks, as its text."""
    return json.dumps(value, sort_keys=True, default=str)


def differences(of_first: Mapping[str, Any], own: Mapping[str, Any]) -> Differences:
    """What of ``own`` is not as rank 0 has it; a setting that only one of them has counts, too."""
    names = [*of_first, *(name for name in own if name not in of_first)]
    return {n: own.get(n) for n in names if as_text(own.get(n)) != as_text(of_first.get(n))}


def disagreement(
    of_first: Mapping[str, Any], others: Iterable[tuple[int, Differences]]
) -> ConfigError | None:
    """The first setting in which ranks differ from rank 0, and which ranks; None if there is none.

    Args:
        of_first: Settings of rank 0.
        others: Rank and :func:`differences` of those that differ.
    """
    found = sorted(others)
    for name in dict.fromkeys(name for _, diff in found for name in diff):
        ranks = {rank: diff[name] for rank, diff in found if name in diff}
        shown = dict(list(ranks.items())[:_MAX_NAMED])
        more = f" and {len(ranks) - len(shown)} more" if len(ranks) > len(shown) else ""
        return ConfigError(
            name,
            of_first.get(name),
            f"is what rank 0 has, but other ranks differ: {shown}{more}; all ranks must be started "
            "with the same data, settings and code",
        )
    return None


def check_agreement(settings: Mapping[str, Any]) -> None:
    """Compares ``settings`` over all ranks; a difference would end in a hang or in nonsense.

    Rank 0's go to all, and only differences come back: 10 kB to each of any number of ranks.

    Raises:
        ConfigError: on every rank, the same one: the first setting that differs, with the ranks
            that differ from rank 0.
    """
    of_first = broadcast_object_list([dict(settings)])[0]
    own = differences(of_first, settings)
    everyone: list[Differences] = gather_object([own])
    error = disagreement(of_first, ((rank, d) for rank, d in enumerate(everyone) if d))
    if error is not None:
        raise error
