import gc
import itertools
import threading
import weakref
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import pytest

from grpo_stream.errors import StoreError
from grpo_stream.stream.pipeline.pending_samples import PendingSamples

SAMPLES: list[Any] = ["a", "b", "c"]


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("num_before", range(4))
def test_what_follows_happens_once_when_all_are_there(order, num_before):
    pending, calls = PendingSamples(3), list[str]()
    for place, number in enumerate(order):
        if place == num_before:
            pending.then(lambda: calls.append("then"))
        assert not calls
        pending.put(number, SAMPLES[number])
    if num_before == 3:
        pending.then(lambda: calls.append("then"))
    assert calls == ["then"]
    assert [pending.take(number) for number in range(3)] == SAMPLES
    pending.cancel()  # nothing is missing
    assert not pending.is_cancelled
    assert calls == ["then"]


def test_an_error_is_raised_where_its_sample_is_taken():
    pending = PendingSamples(2)
    pending.put(1, StoreError("unavailable", "gone"))
    pending.put(0, SAMPLES[0])
    assert pending.take(0) is SAMPLES[0]
    with pytest.raises(StoreError, match="gone"):
        pending.take(1)


def test_giving_up_ends_the_waiting():
    pending, calls = PendingSamples(2), list[str]()
    pending.then(lambda: calls.append("then"))
    pending.put(0, SAMPLES[0])
    for _ in range(2):
        pending.cancel()
        assert pending.is_cancelled
        assert calls == ["then"]
    pending.put(1, SAMPLES[1])  # too late
    assert calls == ["then"]
    with pytest.raises(CancelledError):
        pending.take(1)


def followed():
    """One pending sample, followed by what refers to it; ask whether it is held."""

    class Found:
        pass

    found: Any = Found()
    pending = PendingSamples(1)
    pending.then(lambda: pending.is_cancelled)
    pending.put(0, found)
    return weakref.ref(found)


def test_nothing_is_left_to_the_search_for_garbage():
    gc.disable()
    try:
        assert followed()() is None
    finally:
        gc.enable()


def test_many_threads():
    for _ in range(50):
        pending, ends = PendingSamples(8), list[int]()
        pending.then(partial(ends.append, 1))
        threads = [
            threading.Thread(target=pending.put, args=(number, SAMPLES[0])) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends == [1]
