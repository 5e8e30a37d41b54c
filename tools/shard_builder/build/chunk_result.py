"""What came of a chunk, kept until the build ends: shards, notes on samples, rejects."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from grpo_stream.checksum import crc32
from grpo_stream.records.validate import Verdict
from grpo_stream.shards.manifest import ShardInfo
from shard_builder.build.chunk_plan import Place

STATE_FOLDER = "_build"
"""Folder of what an unfinished build has done so far, beside its shards."""

NUM_FIRST_REJECTS = 5
"""So many are told of while the build runs; all are listed at its end."""


@dataclass
class Notes:
    """What is kept of a chunk's samples until the build ends, one list a field.

    Lists of plain values: there is one for every sample of the build, and they are read and
    written in a fraction of the time that an object for each would take.
    """

    positions: list[int] = field(default_factory=list)
    """Of the record over all inputs."""
    inputs: list[int] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    """Index of the record in its input."""
    images: list[str] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    """64-bit hash of image and prompt."""
    answers: list[int] = field(default_factory=list)
    """CRC-32 of the solution."""
    warnings: list[tuple[int, str, str]] = field(default_factory=list)
    """Number of the sample in these lists, cause and detail; in the order of the samples."""

    def __len__(self) -> int:
        return len(self.positions)

    def add(self, place: Place, image: str, verdict: Verdict) -> None:
        """Appends a sample."""
        sample = verdict.sample
        asked = verdict.fingerprint.to_bytes(8, "little") + sample.prompt.encode()
        question = hashlib.blake2b(asked, digest_size=8).digest()
        number = len(self.positions)
        self.positions.append(place.position)
        self.inputs.append(place.input)
        self.records.append(place.record)
        self.images.append(image)
        self.questions.append(int.from_bytes(question, "little"))
        self.answers.append(crc32(repr(sample.meta["solution"]).encode()))
        self.warnings += [(number, *warning) for warning in verdict.warnings]

    def place(self, number: int) -> Place:
        """Where a sample's record stands."""
        return Place(self.positions[number], self.inputs[number], self.records[number])


class Reject(NamedTuple):
    """A record that is no sample."""

    place: Place
    image: str | None
    cause: str
    detail: str


class News(NamedTuple):
    """What was done since the last news."""

    num_records: int = 0
    num_image_bytes: int = 0
    num_rejects: int = 0
    first_rejects: tuple[Reject, ...] = ()
    """A few of them, for people."""


@dataclass
class ChunkResult:
    """What came of a chunk."""

    split: str
    number: int
    num_records: int = 0
    shards: list[ShardInfo] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    rejects: list[Reject] = field(default_factory=list)
    num_image_bytes: int = 0
    num_multi_image: int = 0
    """Samples with several images."""
    num_multi_box: int = 0
    """Samples with several boxes."""
    num_schema_3: int = 0
    """Samples with what schema 3 added."""
    num_text_only: int = 0
    """Samples without images."""
    tags: dict[str, str] = field(default_factory=dict)
    """ETag of each file that was put into a bucket."""
    group_counts: list[int] = field(default_factory=list)
    """Images in a row, of each shard."""

    def news(self) -> News:
        """All of it as one piece of news."""
        rejects = tuple(self.rejects[:NUM_FIRST_REJECTS])
        return News(self.num_records, self.num_image_bytes, len(self.rejects), rejects)

    def to_json(self) -> bytes:
        """JSON that :meth:`from_json` reads."""
        shards = [asdict(shard) for shard in self.shards]
        return json.dumps({**vars(self), "shards": shards, "notes": vars(self.notes)}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ChunkResult":
        """Reads what :meth:`to_json` wrote."""
        raw = json.loads(data)
        raw["shards"] = [ShardInfo(**shard) for shard in raw["shards"]]
        raw["notes"] = Notes(**raw["notes"])
        raw["rejects"] = [Reject(Place(*place), *rest) for place, *rest in raw["rejects"]]
        return cls(**raw)


def result_name(split: str, number: int) -> str:
    """Where the result of a chunk is kept until the build ends."""
    return f"{STATE_FOLDER}/{split or 'all'}-{number:06d}.json"
