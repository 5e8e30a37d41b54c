"""Re-reads a data set and believes nothing: hashes, indexes, images, boxes, keys, totals."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo_stream.errors import GrpoStreamError, StoreError
from grpo_stream.records.evidence import Sampled
from grpo_stream.shards.images_field import is_text_only
from grpo_stream.shards.linked_sets import open_set
from grpo_stream.shards.manifest import Manifest, ShardInfo
from grpo_stream.storage.store import Store
from shard_builder.datasets.judge_reading import is_judged, judge_reading, places_of
from shard_builder.datasets.scan_shards import (
    KeyBook,
    OnProgress,
    first_repeated_key,
    key_hash,
    no_progress,
)
from shard_builder.passes.look_values import (
    packed_hashes,
    packed_places,
    unpacked_hashes,
    unpacked_places,
)
from shard_builder.passes.manifest_pass import ManifestPass
from shard_builder.passes.run_pass import PassSettings, run_pass
from shard_builder.passes.sound_samples import VerifyError, sound_samples

__all__ = ["VerifyError", "VerifyPass", "VerifyResult", "verify"]

_COUNTED = ("num_multi_image", "num_multi_box", "num_text_only")
_LISTS = (("rejects.jsonl", "num_rejects"), ("warnings.jsonl", "num_warnings"))


@dataclass(frozen=True)
class VerifyResult:
    """What was found sound."""

    num_samples: int
    num_bytes: int
    """Of all tars."""
    num_shards: int


def verify(
    store: Store,
    manifest: Manifest,
    *,
    workers: int = 1,
    on_progress: OnProgress = no_progress,
) -> VerifyResult:
    """Reads every shard whole, one sample in memory for each worker.

    Checks size and SHA-256 of each tar, both of its indexes, sample by sample with all places,
    sizes and checksums, that each image decodes to the size that JSON and index give, that every
    solution is inside its image, and that keys are unique in the set (8 bytes a sample are
    held for that). Of tars that others made, that the boxes look like pixels. Then the manifest's
    totals, the number of lines in ``rejects.jsonl`` and ``warnings.jsonl`` and the causes of
    rejects, and that no other ``*.tar`` is there, where the store can list: readers that take
    ``*.tar`` would read it too. Other files, hidden ones among them, are not looked at. What lists
    and settings say in words has no checksum: no sample depends on it.

    Args:
        store: The data set's folder.
        manifest: What :meth:`Manifest.load` gave.
        workers: Shards that are read at the same time, each in a thread; images are decoded
            outside Python's lock.
        on_progress: Is told of every sample.

    Raises:
        VerifyError: the first fault in the data set's order, whatever the number of workers.
        StoreError: a shard is missing or cannot be read.
        ConfigError: ``workers`` is below 1.
    """
    result = run_pass(VerifyPass(store, manifest), PassSettings(workers), on_progress)
    assert isinstance(result, VerifyResult)  # noqa: S101 - no part was asked for
    return result


class VerifyPass(ManifestPass[VerifyResult]):
    """:func:`verify` as a pass, of which parts may be done elsewhere.

    Raises:
        VerifyError: the manifest does not fit itself.
    """

    command = "verify"

    def __init__(self, store: Store, manifest: Manifest) -> None:
        super().__init__(store, {}, manifest)
        self._is_judged = is_judged(manifest)
        _check_totals(manifest, _sums(manifest))

    @classmethod
    def opened(cls, url: str, settings: dict[str, Any]) -> "VerifyPass":
        """See :meth:`ShardPass.opened`."""
        del settings
        return cls(*open_set(url))

    def fault_of(self, finding: Any) -> Exception | None:
        """See :meth:`ShardPass.fault_of`."""
        fault: Exception | None = finding["fault"]
        return fault

    def look(
        self, number: int, should_stop: Callable[[], bool], on_progress: OnProgress
    ) -> dict[str, Any]:
        """See :meth:`ShardPass.look`: keys up to the fault, the fault, places, counts."""
        hashes: list[int] = []
        places = Sampled()
        num_multi = dict.fromkeys(_COUNTED, 0)
        fault: GrpoStreamError | None = None
        last_key = None
        try:
            for sample, num_bytes in sound_samples(
                self.store, self._manifest.shards[number], should_stop
            ):
                last_key = sample.key
                if not self._is_judged:
                    for place in places_of(sample, len(hashes)):
                        places.add(place)
                hashes.append(key_hash(last_key))
                num_multi["num_multi_image"] += bool(sample.more_images)
                num_multi["num_multi_box"] += len(sample.solutions) > 1
                num_multi["num_text_only"] += is_text_only(sample.meta)
                on_progress(1, num_bytes)
        except (VerifyError, StoreError) as error:
            fault = error
        except GrpoStreamError as error:
            after = "" if last_key is None else f" (the last sound sample is key={last_key!r})"
            fault = VerifyError(f"{error}{after}")
        return {
            "hashes": packed_hashes(hashes),
            "fault": fault,
            "places": packed_places(places),
            "num_multi": num_multi,
        }

    def conclude(self, findings: Iterable[dict[str, Any]]) -> VerifyResult:
        """See :meth:`ShardPass.conclude`."""
        store, manifest = self.store, self._manifest
        book = KeyBook()
        sampled = Sampled()
        num_multi = Counter(dict.fromkeys(_COUNTED, 0))
        for finding in findings:
            book.add(unpacked_hashes(finding["hashes"]))
            num_multi.update(finding["num_multi"])
            for place in unpacked_places(finding["places"]):
                sampled.add(place)
            if finding["fault"] is not None:
                _check_keys(store, manifest.shards, book)
                raise finding["fault"]
        _check_keys(store, manifest.shards, book)
        _check_totals(manifest, num_multi)
        if not self._is_judged:
            _, fault = judge_reading(sampled, None)
            if fault is not None:
                raise VerifyError(f"{store.url}: {fault}")
        _check_lists(store, manifest)
        _check_others(store, manifest)
        num_bytes = sum(info.num_bytes for info in manifest.shards)
        return VerifyResult(manifest.num_samples, num_bytes, len(manifest.shards))

    def result_to_values(self, result: VerifyResult) -> dict[str, Any]:
        """See :meth:`ShardPass.result_to_values`."""
        return asdict(result)

    def result_from_values(self, values: dict[str, Any]) -> VerifyResult:
        """See :meth:`ShardPass.result_from_values`."""
        return VerifyResult(**values)


def _check_keys(store: Store, shards: Sequence[ShardInfo], book: KeyBook) -> None:
    hashes = book.repeated()
    if not hashes:
        return
    names = [shards[number].name for number in book.holders(hashes)]
    found = first_repeated_key(store, names, hashes)
    if found is not None:
        key, again, first = found
        raise VerifyError(f"{again}: key={key!r} is not unique in the set: {first} has it too")


def _sums(manifest: Manifest) -> dict[str, int]:
    num_rejects = sum(manifest.rejects.values())
    return {
        "num_samples": manifest.num_samples,
        "num_bytes": sum(info.num_bytes for info in manifest.shards),
        "num_rejects": num_rejects,
        "num_records": manifest.num_samples + num_rejects,
    }


def _check_totals(manifest: Manifest, found: Mapping[str, int]) -> None:
    for name, expected in found.items():
        if manifest.totals.get(name, expected) != expected:
            detail = f"{name} is {manifest.totals[name]} in its totals, found are {expected}"
            raise VerifyError(f"manifest: {detail}")


def _check_lists(store: Store, manifest: Manifest) -> None:
    for name, total in _LISTS:
        expected = manifest.totals.get(total, 0)
        if not store.exists(name) and not expected:
            continue
        causes = _causes(store, name)
        if causes.total() != expected:
            detail = f"{causes.total()} lines, the manifest says {total}={expected}"
            raise VerifyError(f"{name}: {detail}")
        if total == "num_rejects" and causes != Counter(manifest.rejects):
            raise VerifyError(f"{name}: its causes are not those that the manifest counts")


def _causes(store: Store, name: str) -> Counter[str]:
    causes: Counter[str] = Counter()
    number = 0
    with store.open_stream(name) as lines:
        try:
            for line in lines:
                number += 1
                causes[json.loads(line)["cause"]] += 1
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise VerifyError(f"{name} line {number}: no object with a cause") from error
    return causes


def _check_others(store: Store, manifest: Manifest) -> None:
    try:
        names = store.list_names()
    except StoreError as error:
        if error.cause in ("unreadable", "forbidden"):
            return  # a web server, or a bucket that may be read but not listed
        raise
    strays = {name for name in names if name.endswith(".tar")}
    strays -= {info.name for info in manifest.shards}
    if strays:
        detail = "is there but the manifest does not name it: remove it, or index the folder"
        raise VerifyError(f"{min(strays)} {detail}")
