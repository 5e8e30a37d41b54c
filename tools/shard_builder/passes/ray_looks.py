"""A pass on a Ray cluster: a shard is a task, which any node may do, and do again."""

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import ray

from grpo_stream.errors import ConfigError, GrpoStreamError
from shard_builder.build.workers.ray_crew import (
    MAX_LOST,
    MAX_RETRIES,
    absolute,
    connect,
    node_name,
    num_slots,
    result_of_task,
)
from shard_builder.datasets.scan_shards import OnProgress, no_progress
from shard_builder.parts.plan_request import difference
from shard_builder.passes.shard_pass import ShardPass

__all__ = ["look_on_ray", "result_of_task"]

_AHEAD_PER_SLOT = 4
"""Tasks given for each that runs: one slow shard does not leave the others idle."""


@dataclass(frozen=True)
class _Asked:
    """What each process of the cluster is told."""

    kind: type[ShardPass[Any]]
    url: str
    settings: dict[str, Any]
    request: dict[str, Any]
    """What the node must find the same."""


def look_on_ray(
    one: ShardPass[Any], numbers: Iterable[int], address: str | None, on_progress: OnProgress
) -> Generator[Any, None, None]:
    """Looks at shards on a cluster, which is left, or ends if it was started for this, at the end.

    Args:
        one: What to look for; the set's URL must mean the same on all nodes.
        numbers: Of the shards.
        address: As ``ray.init`` takes it; None starts a cluster here.
        on_progress: Is told of each shard.

    Yields:
        What was found, in the order of ``numbers``.

    Raises:
        ConfigError: no cluster answers, or a node has another version or another set.
        WorkerDiedError: a task was lost again and again.
    """
    asked = _Asked(type(one), absolute(one.store.url), one.settings, one.request())
    is_ours = not ray.is_initialized()
    if is_ours:
        connect(address)
    task = ray.remote(num_cpus=1.0, max_retries=MAX_RETRIES)(_look)
    given: deque[tuple[int, Any]] = deque()
    waiting = iter(numbers)
    try:
        while True:
            while len(given) < num_slots() * _AHEAD_PER_SLOT:
                number = next(waiting, None)
                if number is None:
                    break
                given.append((number, task.remote(asked, number)))
            if not given:
                return
            number, ref = given.popleft()
            found = result_of_task(ref, is_last_try=False)
            for num_lost in range(1, MAX_LOST + 1):
                if found is not None:
                    break
                ref = task.remote(asked, number)
                found = result_of_task(ref, is_last_try=num_lost == MAX_LOST)
            finding = found[0]
            on_progress(*one.counts_of(number, finding))
            yield finding
    finally:
        for _, ref in given:
            ray.cancel(ref)
        if is_ours:
            ray.shutdown()


_passes: list[tuple[_Asked, ShardPass[Any]]] = []


def _look(asked: _Asked, number: int) -> tuple[Any]:
    """The task: runs in a process of some node, which it shares with tasks before and after it."""
    if not _passes or _passes[0][0] != asked:
        _passes[:] = [(asked, _opened(asked))]
    return (_passes[0][1].look(number, lambda: False, no_progress),)


def _opened(asked: _Asked) -> ShardPass[Any]:
    try:
        one = asked.kind.opened(asked.url, asked.settings)
        found = one.request()
    except GrpoStreamError as error:
        expected = f"node {node_name()} does not see it ({error}): {_SHARED}"
        raise ConfigError("URL", asked.url, expected) from error
    if found != asked.request:
        words = difference(found, asked.request, "on this machine")
        raise ConfigError("URL", asked.url, f"is another on node {node_name()}: {words}; {_SHARED}")
    return one


_SHARED = (
    "must be a bucket, or a folder that all nodes share under one path, and all nodes must have "
    "the same versions"
)
