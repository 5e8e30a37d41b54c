"""From what a user names, ``0.7:s3://bucket/a 0.3:s3://bucket/b``, to sources and weights."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

from grpo_stream.errors import ConfigError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.retrying_store import RetryRules
from grpo_stream.stream.config import CacheSettings, StreamConfig
from grpo_stream.stream.sources import ShardSource


def parse_shards(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits words such as ``0.7:s3://bucket/train`` into URLs and weights.

    What is before the first ``:`` is the weight, where it is a number or a fraction: no URL begins
    with a digit. Of a folder it may also be behind the last ``=``, as in ``shards/train=0.7``,
    where there is no folder of that whole name; ``s3://bucket/year=2024`` is a URL as it is. Where
    none has a weight, all weigh 1.

    Returns:
        URLs and weights, of equal length.

    Raises:
        ConfigError: there are none, only some have weights, or a weight is not above 0.
    """
    if not words:
        raise ConfigError("shards", list(words), "name at least one data set, for example ./shards")
    pairs = [_split(word) for word in words]
    missing = [url for url, weight in pairs if weight is None]
    if missing and len(missing) < len(pairs):
        expected = f"has no weight, and others have: write 0.3:{missing[0]}"
        raise ConfigError("shards", missing[0], expected)
    return [url for url, _ in pairs], ["1" if weight is None else weight for _, weight in pairs]


def open_shards(
    urls: Sequence[str],
    *,
    cache: CacheSettings | None = None,
    retry: RetryRules | None = None,
    max_sample_bytes: int = StreamConfig.max_sample_bytes,
    manifests: Mapping[str, Manifest] | None = None,
) -> list[ShardSource]:
    """Opens data sets, all at the same time; see :class:`ShardSource`.

    ``manifests`` holds those that have been read already, by URL.

    Raises:
        ManifestError: there is no data set, or none that this version reads.
        StoreError: one cannot be reached.
        ConfigError: one cannot be streamed, or a setting cannot work.
    """

    def open_one(url: str) -> ShardSource:
        return ShardSource(
            url,
            cache=cache,
            retry=retry,
            max_sample_bytes=max_sample_bytes,
            manifest=(manifests or {}).get(url),
        )

    with ThreadPoolExecutor(len(urls), "open-shards") as pool:
        opening = [pool.submit(open_one, url) for url in urls]
    try:
        return [source.result() for source in opening]
    except BaseException:
        for source in opening:
            if source.exception() is None:
                source.result().close()
        raise


def _split(word: str) -> tuple[str, str | None]:
    if os.path.isdir(word):  # noqa: PTH112 - a URL, perhaps
        return word, None
    text, sign, url = word.partition(":")
    weight = _weight(text) if sign and url else None
    if weight is None and "://" not in word:
        url, sign, text = word.rpartition("=")
        weight = _weight(text) if sign else None
    if weight is None:
        return word, None
    if weight <= 0:
        raise ConfigError("shards", word, f"its weight must be above 0, for example 0.5:{url}")
    return url, text


def _weight(text: str) -> Fraction | None:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
