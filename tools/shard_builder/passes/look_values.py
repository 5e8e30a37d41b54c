"""What looks at shards find, as values that can be sent and kept."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_stream.boxes import Size
from grpo_stream.records.evidence import Looked, Sampled
from grpo_stream.shards.manifest import Manifest


def set_facts(manifest: Manifest) -> dict[str, Any]:
    """Names the content of a set: shards, indexes, totals and settings."""
    return {
        "digest": manifest.digest,
        "manifest_sha256": hashlib.sha256(manifest.to_json()).hexdigest(),
    }


def packed_hashes(hashes: Sequence[int]) -> bytes:
    """Hashes of keys, as :func:`~.scan_shards.key_hash` gives them, in 8 bytes each."""
    return np.array(hashes, "<i8").tobytes()


def unpacked_hashes(data: bytes) -> NDArray[np.int64]:
    """What :func:`packed_hashes` was given: int64, shape (num_keys,)."""
    return np.frombuffer(data, "<i8")


def packed_places(places: Sampled) -> list[list[Any]]:
    """The places that were sampled, as JSON values."""
    return [[*one[:3], list(one.size), list(one.numbers)] for one in places.items()]


def unpacked_places(rows: Sequence[Sequence[Any]]) -> Iterator[Looked]:
    """What :func:`packed_places` was given."""
    for record, prompt, image, size, numbers in rows:
        yield Looked(record, prompt, image, Size(*size), tuple(numbers))
