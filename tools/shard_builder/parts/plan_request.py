"""What every part of a build must agree on: settings, inputs, version; and how parts are named."""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import grpo_stream
from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.image_encoding import codec_versions
from grpo_stream.records.formats.byte_chunks import is_remote, local_path
from grpo_stream.records.formats.open_inputs import InputSource
from grpo_stream.storage.store import open_store
from shard_builder.build.build_settings import BuildSettings
from shard_builder.build.output.output_folder import images_root_digest

_NUM_PIECES = 16
_PIECE_BYTES = 64 * 2**10
_NUM_NAMED = 3
_PLAN_WORD = "plan"


@dataclass(frozen=True)
class Part:
    """One part of a build.

    Raises:
        ConfigError: there is no such part.
    """

    number: int
    """From 1; 0 makes the plan and builds nothing, or joins what parts have found."""
    num_parts: int
    word: str = _PLAN_WORD
    """What 0 is written as."""

    def __post_init__(self) -> None:
        if not 0 <= self.number <= self.num_parts or self.num_parts < 1:
            expected = f"parts are 1 to N, as in 1/{max(self.num_parts, 1)}"
            raise ConfigError("--part", f"{self.number}/{self.num_parts}", expected)

    @classmethod
    def parse(cls, text: str, word: str = _PLAN_WORD, does: str = "only makes the plan") -> "Part":
        """A part as users write it: ``3/10``, or ``plan/10``.

        Args:
            text: What the user wrote.
            word: What stands for number 0.
            does: What that does, for the error.

        Raises:
            ConfigError: it is written in another way.
        """
        found = re.fullmatch(rf"(\d+|{word})/(\d+)", text, re.ASCII)
        if found is None or found[1] == "0":
            expected = f"must be I/N with I from 1 to N, as in 3/10; {word}/10 {does}"
            raise ConfigError("--part", text, expected)
        return cls(0 if found[1] == word else int(found[1]), int(found[2]), word)

    @property
    def name(self) -> str:
        """As the user writes it."""
        return f"{self.number or self.word}/{self.num_parts}"


def request_of(
    settings: BuildSettings, sources: Sequence[InputSource], num_parts: int
) -> dict[str, Any]:
    """All that parts must have in common, as JSON values.

    Inputs are compared by name, size and 16 pieces of 64 KiB: parts read their records from the
    plan, so this finds mistakes, and what is built does not depend on it.

    Args:
        settings: Of a part.
        sources: Its inputs, as they were found.
        num_parts: How many there are.

    Raises:
        ConfigError: an input cannot be read.
    """
    values = {
        "builder_version": grpo_stream.__version__,
        "codecs": codec_versions(),
        "num_parts": num_parts,
        "inputs": [_look(source) for source in sources],
        "images_root_sha256": images_root_digest(settings.images_root),
        "input_format": settings.input_format,
        "rules": asdict(settings.rules),
        "flags": None if settings.flags is None else asdict(settings.flags),
        "category_prompt": settings.category_prompt,
        "where": settings.where,
        "split": None if settings.split is None else asdict(settings.split),
        "pictures": asdict(settings.pictures),
        "limits": asdict(settings.limits),
        "by_image": settings.by_image,
        "shuffle_seed": settings.shuffle_seed,
        "accept_reading": settings.accept_reading,
        "max_rejects": settings.max_rejects,
        "max_reject_share": settings.max_reject_share,
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def digest_of(request: dict[str, Any]) -> str:
    """SHA-256 of a request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def check_same(mine: dict[str, Any], planned: dict[str, Any], part: Part) -> None:
    """Compares what a part was asked for with what the plan was made for.

    Raises:
        ConfigError: they differ; the first few differences are named.
    """
    if digest_of(mine) == digest_of(planned):
        return
    words = difference(mine, planned, "in the plan")
    expected = (
        f"is not of the build that is under way in --out (plan {digest_of(planned)[:12]}, this "
        f"would be {digest_of(mine)[:12]}): {words}. Give all parts the same inputs and flags and "
        f"one version of the builder, or begin anew with --part plan/{part.num_parts} --overwrite"
    )
    raise ConfigError("--part", part.name, expected)


def difference(mine: dict[str, Any], others: dict[str, Any], where: str = "there") -> str:
    """Names the first few values in which two requests differ.

    Args:
        mine: What was asked for here.
        others: What was asked for elsewhere.
        where: Names that place.
    """
    here, there = dict(_leaves(mine)), dict(_leaves(others))
    differing = [name for name in sorted(here | there) if here.get(name) != there.get(name)]
    words = "; ".join(
        f"{name} is {here.get(name)!r} here and {there.get(name)!r} {where}"
        for name in differing[:_NUM_NAMED]
    )
    more = len(differing) - _NUM_NAMED
    return f"{words}; and {more} more" if more > 0 else words


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    if not inner:
        yield name, value
    for key, item in inner:
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _look(source: InputSource) -> dict[str, Any]:
    """Name, size and a hash of some pieces; of tables and web pages the name only."""
    name = posixpath.basename(source.name.rstrip("/")) or source.name
    look: dict[str, Any] = {"name": name}
    is_web = source.name.startswith(("http://", "https://"))
    if source.container == "table" or is_web:
        return look
    path = source.name if is_remote(source.name) else local_path(source.name)
    folder, slash, base = path.rpartition("/")
    try:
        store = open_store(folder or slash or ".")
        num_bytes = store.size(base)
        hashed = hashlib.blake2b(digest_size=16)
        last = max(num_bytes - _PIECE_BYTES, 0)
        for offset in sorted({last * number // (_NUM_PIECES - 1) for number in range(_NUM_PIECES)}):
            hashed.update(store.read_range(base, offset, min(_PIECE_BYTES, num_bytes - offset)))
    except StoreError as error:
        raise ConfigError("INPUT", source.name, f"cannot be read: {error.detail}") from error
    return {**look, "num_bytes": num_bytes, "pieces_blake2b": hashed.hexdigest()}
