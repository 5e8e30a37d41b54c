"""What a build works through: records in their order, and the chunks that are built of them."""

import hashlib
import pickle
import posixpath
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.records.form_book import FormBook
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.formats.open_inputs import InputSource, read_formed
from grpo_stream.records.formats.rules import Rules
from shard_builder.build.image_neighbours import bucket_of, image_identity, whole_images
from shard_builder.build.spill_buckets import NUM_BUCKETS, Buckets

_TELL_EVERY = 1_000
_MAX_KEPT_BYTES = 64 * 2**20
_MAX_NESTING = 64  # far below where json and pickle give up, which depends on the stack in use


class Place(NamedTuple):
    """Where a record stands."""

    position: int
    """Over all inputs, from 0."""
    input: int
    """Number of the input, from 0."""
    record: int
    """Its index in that input, from 0."""


Row = tuple[Place, int, Any]
"""Where a record stands, the number of its form, and the record."""


def pack_row(row: Row) -> bytes:
    """A row in a fraction of the memory, and as it travels to a worker process."""
    place, form, record = row
    # The place as plain numbers: its class would be looked up for every row.
    return pickle.dumps((*place, form, record), protocol=5)


def unpack_row(row: Row | bytes) -> Row:
    """A row, whether it was packed or not."""
    if not isinstance(row, bytes):
        return row
    position, number, index, form, record = pickle.loads(row)  # noqa: S301 - made by pack_row
    return Place(position, number, index), form, record


class Chunk(NamedTuple):
    """Consecutive records of one split that become shards of their own.

    What a chunk becomes depends on nothing outside it, so it can be built by any process, before
    or after any other, and once more after a crash.
    """

    split: str
    """Name of the split; empty where the data set is not split."""
    number: int
    """Within the split, from 0."""
    records: list[Row | bytes]
    """Bytes are rows of :func:`pack_row`."""
    rules: tuple[Rules, ...]
    """How the records of each form are written."""


class LaterChunk(NamedTuple):
    """A chunk that is read when it is needed."""

    split: str
    number: int
    read: Callable[[], Chunk]


@dataclass(frozen=True)
class ShardLimits:
    """When a shard is full; whichever comes first."""

    max_samples: int = 1_000
    """A shard takes this many consecutive records; those that are rejected leave it shorter."""
    max_bytes: int = 256 * 2**20
    """A shard ends before the sample that would pass this size; one huge sample may."""


@dataclass(frozen=True)
class InputSummary:
    """What the survey found in one input."""

    name: str
    """Its file name, without the folder."""
    sha256: str
    """Of its bytes as they are stored, compressed or not."""
    num_records: int


@dataclass(frozen=True)
class Survey:
    """What the first reading of all inputs found."""

    inputs: tuple[InputSummary, ...]
    num_wanted: int
    """Records that the build judges, over all inputs: those that ``where`` lets through."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """The inputs as plain values, for the manifest."""
        return [asdict(summary) for summary in self.inputs]


class Reading:
    """The inputs of a build, read twice: once to find damage and to count, once to build.

    Records of which all fit into 64 MiB are kept from the first reading.

    Args:
        sources: The inputs.
        rules: How the records of each are written.
        where: Fields and the values they must have, as in ``(("split", "train"),)``.
        shuffle_seed: Shuffles all records; None keeps their order.
        folder: For temporary files; a shuffle needs as much room as the records take.
        by_image: The records of an image become neighbours.
    """

    def __init__(
        self,
        sources: Sequence[InputSource],
        rules: Sequence[Rules],
        where: Sequence[tuple[str, str]],
        shuffle_seed: int | None,
        folder: Path,
        *,
        by_image: bool = False,
    ) -> None:
        self._sources = sources
        self._by_image = by_image
        self._rules = rules
        self._where = where
        self._shuffle_seed = shuffle_seed
        self.forms = FormBook(rules)
        """The forms of all records; decided after :meth:`survey`."""
        self.carries_images = False
        """Whether records carry their images with them; known after :meth:`survey`."""
        self._kept: list[bytes] | None = None
        self._buckets = Buckets(folder / "shuffle")

    def survey(self, tell: Callable[[int], None]) -> Survey:
        """Reads everything once.

        Args:
            tell: Gets the number of records so far, now and then.

        Raises:
            RecordError: an input is damaged as a whole.
        """
        deal = random.Random(self._shuffle_seed)  # noqa: S311 - no secret
        summaries: list[InputSummary] = []
        kept: list[bytes] = []
        num_wanted = num_bytes = 0
        forms = self.forms
        for row in self._read(summaries):
            place, form, record = row
            forms.add(form, place.record, record)
            if not self.carries_images and type(record) is dict:
                image = record.get(forms.image_key(form))
                self.carries_images = type(image) is InlineImage or type(image) is list
            num_wanted += 1
            if num_wanted % _TELL_EVERY == 0:
                tell(num_wanted)
            if self._by_image:
                image = image_identity(record, forms.image_key(form))
                self._buckets.add(bucket_of(image, self._shuffle_seed), pack_row(row))
            elif self._shuffle_seed is not None:
                self._buckets.add(deal.randrange(NUM_BUCKETS), pack_row(row))
            elif num_bytes < _MAX_KEPT_BYTES:
                kept.append(pack_row(row))
                num_bytes += len(kept[-1])
            else:
                kept.clear()
        tell(num_wanted)
        if len(kept) == num_wanted and not self._by_image:
            self._kept = kept
        self._surveyed = tuple(summaries)
        return Survey(self._surveyed, num_wanted)

    def records(self) -> Iterator[Row | bytes]:
        """The records in the order of the build; after :meth:`survey`, once.

        Raises:
            RecordError: cause ``input_changed``: an input is not what it was.
        """
        if self._by_image:
            yield from whole_images(self._buckets, self.forms, self._shuffle_seed, unpack_row)
        elif self._shuffle_seed is not None:
            yield from self._shuffled()
        elif self._kept is not None:
            yield from self._kept
        else:
            summaries: list[InputSummary] = []
            yield from self._read(summaries)
            for before, now in zip(self._surveyed, summaries, strict=True):
                if before != now:
                    detail = f"{now.name} was changed while it was read: start again"
                    raise RecordError("input_changed", detail)

    def _read(self, summaries: list[InputSummary]) -> Iterator[Row]:
        position = 0
        for number, source in enumerate(self._sources):
            sha256 = hashlib.sha256()
            first = position
            last_form, form_number = None, 0
            for index, form, record in read_formed(
                source, self._rules[number], on_bytes=sha256.update
            ):
                if form is not last_form:
                    last_form, form_number = form, self.forms.number(number, form)
                if _is_wanted(record, self._where):
                    yield Place(position, number, index), form_number, _checked(record)
                position += 1
            name = posixpath.basename(source.name.rstrip("/")) or source.name
            summaries.append(InputSummary(name, sha256.hexdigest(), position - first))

    def _shuffled(self) -> Iterator[bytes]:
        # Dealt at random, then shuffled bucket by bucket: every order is as likely as another.
        order = random.Random(f"order {self._shuffle_seed}")  # noqa: S311 - no secret
        for bucket in range(NUM_BUCKETS):
            rows = list(self._buckets.read(bucket))
            order.shuffle(rows)
            yield from rows


@dataclass(frozen=True)
class Splits:
    """Named shares of the images, as in ``(("val", 0.02),)``; the rest is called ``train``.

    Raises:
        ConfigError: names or shares that cannot work.
    """

    shares: tuple[tuple[str, float], ...]
    rest: str = "train"

    def __post_init__(self) -> None:
        names = [name for name, _ in self.shares]
        if not names:
            raise ConfigError("--split", names, "name at least one part, as in val=0.02")
        for name, share in self.shares:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == self.rest:
                expected = f"a name of letters and digits other than {self.rest!r}, as in val=0.02"
                raise ConfigError("--split", name, expected)
            if not 0 < share < 1:
                raise ConfigError("--split", f"{name}={share:g}", "a share in (0, 1), as in 0.02")
        if len(set(names)) < len(names):
            raise ConfigError("--split", names, "names a split twice: give each once")
        if sum(share for _, share in self.shares) >= 1:
            expected = f"leave something for {self.rest!r}: shares must add up to less than 1"
            raise ConfigError("--split", dict(self.shares), expected)

    @property
    def names(self) -> tuple[str, ...]:
        """All splits, the rest last."""
        return (*(name for name, _ in self.shares), self.rest)

    def of(self, image: bytes) -> str:
        """The split of an image, by its content alone.

        Args:
            image: The image file's bytes, or what stands for an image that cannot be read.
        """
        drawn = int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "big") / 2**64
        for name, share in self.shares:
            drawn -= share
            if drawn < 0:
                return name
        return self.rest


def _is_wanted(record: Any, where: Sequence[tuple[str, str]]) -> bool:
    if not where or not isinstance(record, dict):
        return True  # a bad record is for the judge
    return all(name in record and str(record[name]) == value for name, value in where)


def _checked(record: Any) -> Any:
    if _is_nested_beyond(record, _MAX_NESTING):
        return RecordError("record_nested", f"nested more than {_MAX_NESTING} levels deep")
    return record


def _is_nested_beyond(value: Any, levels: int) -> bool:
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return False
    for item in value:
        kind = type(item)
        if (kind is dict or kind is list) and (levels == 1 or _is_nested_beyond(item, levels - 1)):
            return True
    return False
