import gc
import itertools
import threading
import weakref
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import pytest

from grpo_stream.errors import StoreError
from grpo_stream.stream.pipeline.pending_samples import Arrivals

SAMPLES: list[Any] = ["a", "b", "c"]


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("num_before", range(4))
def test_what_follows_happens_once_when_all_are_there(order, num_before):
    arrivals, calls = Arrivals(3), list[str]()
    for place, number in enumerate(order):
        if place == num_before:
            arrivals.then(lambda: calls.append("then"))
        assert not calls
        arrivals.put(number, SAMPLES[number])
    if num_before == 3:
        arrivals.then(lambda: calls.append("then"))
    assert calls == ["then"]
    assert [arrivals.take(number) for number in range(3)] == SAMPLES
    arrivals.cancel()  # nothing is missing
    assert not arrivals.is_cancelled
    assert calls == ["then"]


def test_an_error_is_raised_where_its_sample_is_taken():
    arrivals = Arrivals(2)
    arrivals.put(1, StoreError("unavailable", "gone"))
    arrivals.put(0, SAMPLES[0])
    assert arrivals.take(0) is SAMPLES[0]
    with pytest.raises(StoreError, match="gone"):
        arrivals.take(1)


def test_giving_up_ends_the_waiting():
    arrivals, calls = Arrivals(2), list[str]()
    arrivals.then(lambda: calls.append("then"))
    arrivals.put(0, SAMPLES[0])
    for _ in range(2):
        arrivals.cancel()
        assert arrivals.is_cancelled
        assert calls == ["then"]
    arrivals.put(1, SAMPLES[1])  # too late
    assert calls == ["then"]
    with pytest.raises(CancelledError):
        arrivals.take(1)


def followed():
    """Arrivals of one sample that were followed by what refers to them; ask whether it is held."""

    class Found:
        pass

    found: Any = Found()
    arrivals = Arrivals(1)
    arrivals.then(lambda: arrivals.is_cancelled)
    arrivals.put(0, found)
    return weakref.ref(found)


def test_nothing_is_left_to_the_search_for_garbage():
    gc.disable()
    try:
        assert followed()() is None
    finally:
        gc.enable()


def test_many_threads():
    for _ in range(50):
        arrivals, ends = Arrivals(8), list[int]()
        arrivals.then(partial(ends.append, 1))
        threads = [
            threading.Thread(target=arrivals.put, args=(number, SAMPLES[0])) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends == [1]
