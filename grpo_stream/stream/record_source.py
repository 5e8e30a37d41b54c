"""Raw records as a source, without shards: for a first run, a notebook, a small set."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from grpo_stream.checksum import crc32
from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.images import DEFAULT_LIMITS, SUFFIXES, ImageLimits, ResizeRule, probe
from grpo_stream.order.epoch_plan import Indices
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.formats.json_stream import read_records
from grpo_stream.records.image_files import folder_prefixes, is_relative, read_image
from grpo_stream.records.keys import make_key
from grpo_stream.records.stored_image import Picture
from grpo_stream.records.validate import Rules, judge
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.stream_sample import StreamSample

_GUESSED_SAMPLE_BYTES = 2**18
_RULES = Rules(several="keep")


@dataclass(frozen=True)
class JudgedRecord:
    """A record whose image has been read; an ``Encoded`` of ``sources.py``."""

    judged: Sample

    def sample(self) -> Sample:
        """It was checked when it was judged."""
        return self.judged


class RecordSource:
    """A list of raw records and the folder that their images are in, as one virtual shard.

    Records are judged as the shard builder judges them, but only when they are read, so a bad one
    is replaced by a stand-in instead of being known in advance. All records are held in memory;
    for more than some hundred thousand, build shards.

    Args:
        records: Mappings with ``image``, ``prompt`` and ``solution``.
        images_root: Folder that the image paths are relative to; not needed where all are absolute.
        rules: How the records are written, all of them or each.
        limits: What an image may be at most; that of the stream that reads them.
        readings: How their numbers are read, in words.

    Raises:
        ConfigError: there is no such folder, there are no records, or one holds a value whose
            digest would be another one in every process.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        images_root: str | Path | None,
        rules: Rules | Sequence[Rules] | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        *,
        readings: Sequence[str] = (),
    ) -> None:
        if not records:
            raise ConfigError("records", [], "must hold at least one record")
        self._records = records
        self._rules = rules or _RULES
        self._root = _checked_root(images_root, records, self._rules)
        self._limits = limits
        self.readings = tuple(readings)
        """How the numbers are read, in words; nothing where the caller said it."""
        text = json.dumps(list(records), sort_keys=True, default=_plain)
        if not isinstance(self._rules, Rules) and set(self._rules) != {_RULES}:
            text += repr(self._rules)  # other readings are other samples
        self._digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @classmethod
    def from_file(
        cls,
        path: Path,
        images_root: str | Path | None,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> "RecordSource":
        """Reads a JSON array or JSON Lines.

        Raises:
            ConfigError: the file cannot be read, or holds no records.
            RecordError: it holds something that is no JSON.
        """
        if not path.is_file():
            raise ConfigError("json", str(path), "is no file; give a JSON array or JSON Lines")
        records = []
        for record in read_records(path):
            if isinstance(record, RecordError):
                raise record
            records.append(record)
        return cls(records, images_root, limits=limits)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the records (not of the images)."""
        return self._digest

    @property
    def shard_counts(self) -> Indices:
        """One shard that holds them all."""
        return np.array([len(self._records)], dtype=np.int64)

    @property
    def num_multi_image(self) -> int:
        """Records that name several images."""
        return sum(isinstance(one, list) and len(one) > 1 for one in self._named_images())

    @property
    def num_text_only(self) -> int:
        """Records that say they have no image."""
        return sum(one == [] for one in self._named_images())

    def _named_images(self) -> Iterator[Any]:
        each = repeat(self._rules) if isinstance(self._rules, Rules) else self._rules
        for record, rules in zip(self._records, each, strict=False):
            if isinstance(record, Mapping) and rules.image_key in record:
                yield record[rules.image_key] or []

    @property
    def is_remote(self) -> bool:
        """False: images are in a folder."""
        return False

    @property
    def keeps_shards(self) -> bool:
        """False: there are none."""
        return False

    def sample_bytes(self, shard: int) -> int:  # noqa: ARG002 - there is one shard
        """See ``sources.Source.sample_bytes``: a guess, nothing is known before reading."""
        return _GUESSED_SAMPLE_BYTES

    def runs(self, shard: int, samples: Sequence[int]) -> list[list[int]]:  # noqa: ARG002
        """See ``sources.Source.runs``: one image each."""
        return [[sample] for sample in samples]

    def fetch(self, shard: int, samples: Sequence[int]) -> list["JudgedRecord"]:
        """Judges records and reads their images; see ``sources.Source.fetch``."""
        return [JudgedRecord(self.read(shard, sample)) for sample in samples]

    def read(self, shard: int, sample: int) -> Sample:  # noqa: ARG002 - there is one shard
        """Judges a record and reads its image."""
        rules = self._rules if isinstance(self._rules, Rules) else self._rules[sample]
        return _read(self._records[sample], sample, self._root, rules, self._limits)

    def keys(self, shard: int) -> list[str]:  # noqa: ARG002
        """The keys that the records get, read or not."""
        rules = (
            [self._rules] * len(self._records) if isinstance(self._rules, Rules) else self._rules
        )
        return [
            _key_of(record, position, own)
            for position, (record, own) in enumerate(zip(self._records, rules, strict=True))
        ]

    def expect(self, shards: Iterable[int], num_shards_at_once: int) -> None:
        """See ``sources.Source.expect``: nothing to prepare."""

    def invalidate(self, shard: int) -> None:
        """See ``sources.Source.invalidate``: no copies are kept."""

    def describe(self, shard: int, sample: int) -> str:  # noqa: ARG002
        """See ``sources.Source.describe``."""
        return f"record {sample}"

    def identity(self, shard: int, sample: int) -> str:
        """See ``sources.Source.identity``."""
        return self.describe(shard, sample)

    def metrics(self) -> dict[str, float]:
        """See ``sources.Source.metrics``: nothing is counted."""
        return {}

    def close(self) -> None:
        """See ``sources.Source.close``: nothing runs."""


def sample_from_record(
    record: Mapping[str, Any], images_root: str | Path | None, rule: ResizeRule | None
) -> StreamSample:
    """One raw record as a stream sample: judged, decoded and resized.

    Raises:
        ConfigError: there is no such ``images_root``.
        RecordError: the record is no sample.
        ImageError: its image is none.
    """
    root = _checked_root(images_root, [record], _RULES)
    sample = _read(record, 0, root, _RULES, DEFAULT_LIMITS)
    return StreamSample.from_sample(sample, rule)


def _plain(value: object) -> object:
    """A value that JSON does not know as one that it knows, the same in every process."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, InlineImage):
        return [value.name, hashlib.sha256(value.data).hexdigest()]
    if isinstance(value, (Path, complex, Decimal, date, time)):  # a datetime is a date
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return hashlib.sha256(value).hexdigest()
    expected = "must be of values that JSON knows: text, numbers, lists, objects"
    raise ConfigError("records", type(value).__name__, expected)


def _read(record: object, position: int, root: Path, rules: Rules, limits: ImageLimits) -> Sample:
    def open_picture(image: str | InlineImage) -> Picture:
        # Not make_picture: that one decodes, and the stream decodes what it gets, once.
        if isinstance(image, InlineImage):
            data = image.data
        else:
            data = read_image(str(root), folder_prefixes(str(root)), image)
        info = probe(data, limits)
        suffix = SUFFIXES.get(info.format, "png")
        return Picture(data, suffix, info.size, info.size, crc32(data))

    if isinstance(record, Mapping):
        record = dict(record)  # what the judge takes
    key = _key_of(record, position, rules)
    return judge(record, key, rules, open_picture).sample


def _key_of(record: object, position: int, rules: Rules) -> str:
    path = record.get(rules.image_key) if isinstance(record, Mapping) else None
    return make_key(position, path if isinstance(path, str) else "")


def _checked_root(
    images_root: str | Path | None,
    records: Sequence[Mapping[str, Any]],
    rules: Rules | Sequence[Rules],
) -> Path:
    if images_root is None:
        all_rules = [rules] * len(records) if isinstance(rules, Rules) else rules
        if not any(
            isinstance(record, Mapping) and is_relative(record.get(own.image_key))
            for record, own in zip(records, all_rules, strict=True)
        ):
            return Path("/")
    if images_root is None or not Path(images_root).is_dir():
        value = None if images_root is None else str(images_root)
        raise ConfigError("images_root", value, "must be the folder that image paths start from")
    return Path(images_root)
