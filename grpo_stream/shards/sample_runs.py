"""From a tar's members to samples: a sample is the run of neighbouring members with one key."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from grpo_stream.boxes import Size
from grpo_stream.checksum import crc32
from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.fast_json import parse_json
from grpo_stream.shards.images_field import is_of_several_images, is_text_only
from grpo_stream.shards.index import PART_KINDS, IndexEntry, IndexPart
from grpo_stream.shards.sample import IMAGE_SUFFIXES, Sample, parse_meta
from grpo_stream.shards.tar_headers import Member, padding

_SUFFIX_ALIASES = {"jpeg": "jpg"}
_FURTHER_IMAGE = re.compile(rf"([1-9][0-9]{{0,3}})\.({'|'.join(IMAGE_SUFFIXES)}|jpeg)")
_NO_SIZE = Size(0, 0)


class Part(NamedTuple):
    """A member and what it is to its sample."""

    member: Member
    kind: str
    """One of :data:`~grpo_stream.shards.index.PART_KINDS`."""
    image: int
    """Which image of the sample it is, from 0; 0 for what is no image."""

    def other(self) -> "Part":
        """The same, as a member that means nothing to the sample."""
        return Part(self.member, "other", 0)


class Run(NamedTuple):
    """A sample and the members that it came from, in their order."""

    sample: Sample
    parts: list[Part]

    def index_entry(self) -> IndexEntry:
        """The run's line in the index, image sizes as the JSON tells them."""
        sizes = self.sample.sizes
        parts = []
        for member, kind, image in self.parts:
            width, height = sizes[image] if kind in IMAGE_SUFFIXES else _NO_SIZE
            parts.append(
                IndexPart(
                    member.data_offset,
                    len(member.data),
                    width,
                    height,
                    crc32(member.data),
                    PART_KINDS.index(kind),
                    image,
                )
            )
        first, last = self.parts[0].member, self.parts[-1].member
        end = last.data_offset + len(last.data) + len(padding(len(last.data)))
        return IndexEntry(first.offset, end - first.offset, tuple(parts))


def split_name(name: str) -> tuple[str, str]:
    """A member's key and its suffix in lower case, split as WebDataset does it.

    The key ends at the first dot of the last path component; a name without one is all key.
    """
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def iter_runs(members: Iterable[Member], shard: str) -> Iterator[Run]:
    """The samples in ``members``, one in memory at a time.

    Members whose names do not split into key and suffix (``README``, ``._x.jpg``) are passed
    over, as WebDataset and Energon do.

    Args:
        members: Of one tar, or of a part of it, in their order.
        shard: The shard's name, for error messages.

    Raises:
        ShardFormatError: causes ``duplicate_key``, ``duplicate_member``, ``missing_member``,
            ``bad_json``, ``bad_meta``.
    """
    keys: set[str] = set()
    named = ((*split_name(member.name), member) for member in members)
    whole = ((key, suffix, m) for key, suffix, m in named if suffix and not f"/{key}".endswith("/"))
    for key, run in groupby(whole, lambda item: item[0]):
        if key in keys:
            raise ShardFormatError("duplicate_key", f"{shard}: key={key!r} appears twice")
        keys.add(key)
        yield _run(key, [(suffix, member) for _, suffix, member in run], shard)


def _run(key: str, run: list[tuple[str, Member]], shard: str) -> Run:
    where = f"{shard} at byte {run[0][1].offset}: key={key!r}"
    parts = [_part(suffix, member) for suffix, member in run]
    images = [part for part in parts if part.kind in IMAGE_SUFFIXES and part.image == 0]
    metas = [part.member.data for part in parts if part.kind == "json"]
    if len(metas) == 1 and not images:
        meta = _meta_of_text(metas[0], where)
        if meta is not None:
            parts = [part if part.kind == "json" else part.other() for part in parts]
            return Run(Sample(key, b"", "", meta), parts)
    for what, found in (("image", images), ("json", metas)):
        if len(found) != 1:
            raise _wrong_members(where, f"{len(found)} {what} members", len(found), parts)
    first = images[0]
    meta = parse_meta(metas[0], where, first.member.data)
    further = sorted((part for part in parts if part.image > 0), key=lambda part: part.image)
    if not is_of_several_images(meta):
        # Others may mean something else by a member "key.1.png".
        parts = [part if part.image == 0 else part.other() for part in parts]
        further = []
    else:
        _check_numbers(meta, further, parts, where)
    more_images = tuple((part.kind, part.member.data) for part in further)
    return Run(Sample(key, first.member.data, first.kind, meta, more_images), parts)


def _meta_of_text(data: bytes, where: str) -> dict[str, Any] | None:
    """The JSON of a sample that says it has no images; None of any other."""
    try:
        meta = parse_json(data) if b'"images"' in data else None
    except (ValueError, RecursionError):
        return None  # the missing image is the first thing that is wrong
    return parse_meta(data, where) if isinstance(meta, dict) and is_text_only(meta) else None


def _part(suffix: str, member: Member) -> Part:
    suffix = _SUFFIX_ALIASES.get(suffix, suffix)
    if suffix in IMAGE_SUFFIXES or suffix == "json":
        return Part(member, suffix, 0)
    match = _FURTHER_IMAGE.fullmatch(suffix)
    if match is None:
        return Part(member, "other", 0)
    return Part(member, _SUFFIX_ALIASES.get(match[2], match[2]), int(match[1]))


def _check_numbers(
    meta: dict[str, Any], further: list[Part], parts: list[Part], where: str
) -> None:
    numbers = [part.image for part in further]
    num_images = len(meta["images"])
    if numbers != list(range(1, num_images)):
        found = f"images {[0, *numbers]}, its JSON lists {num_images}"
        raise _wrong_members(where, found, len(numbers) - num_images + 2, parts)


def _wrong_members(where: str, found: str, excess: int, parts: list[Part]) -> ShardFormatError:
    cause = "duplicate_member" if excess > 1 else "missing_member"
    names = ", ".join(part.member.name for part in parts)
    return ShardFormatError(cause, f"{where}: {found} in {names}")
