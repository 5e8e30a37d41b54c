"""A small data set behind a server that goes wrong, and the loader that reads it."""

from contextlib import contextmanager

from grpo_stream.stream.config import CacheSettings
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from tests.storage.fault_rules import RULES
from tests.stream.support import keys_of, make_config

URL = "s3://bucket/set"


@contextmanager
def open_loader(
    url,
    *,
    rules=RULES,
    cache=None,
    cache_bytes=10**6,
    until=None,
    transform=keys_of,
    **changes,
):
    """A loader of two threads, closed at the block's end; ``cache`` is a folder."""
    settings = None if cache is None else CacheSettings(str(cache), cache_bytes)
    source = ShardSource(url, cache=settings, retry=rules)
    stream = PromptStream(source, make_config(**({"num_reader_threads": 2} | changes)), World())
    with PromptLoader(stream, transform, until=until) as loader:
        yield loader
