import copy
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.storage.retry_policy import Retrier, RetryRules


class Clock:
    """Time that passes only by sleeping and by ``spend``."""

    def __init__(self):
        self.now = 1000.0
        self.sleeps = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds


def make(clock, draw=lambda _, high: high, **rules):
    return Retrier(RetryRules(**rules), clock=clock, sleep=clock.sleep, draw=draw)


def failing(times, cause="unavailable", result="data", clock=None, took=0.0):
    left = [cause] * times

    def action():
        if clock is not None:
            clock.now += took
        if left:
            raise StoreError(left.pop(), "s3://b: x: 503")
        return result

    return action


def test_waits_double_up_to_the_longest():
    clock = Clock()
    retrier = make(clock, first_delay_seconds=1, max_delay_seconds=6)
    assert retrier.run(failing(6)) == "data"
    assert clock.sleeps == [1, 2, 4, 6, 6, 6]
    counts = retrier.counters.snapshot()
    assert (counts.num_requests, counts.num_retries, counts.num_unavailable) == (7, 6, 6)
    assert (counts.num_failures, counts.waited_seconds) == (0, 25)


def test_jitter_is_drawn_from_the_whole_wait():
    clock, drawn = Clock(), []

    def draw(low, high):
        drawn.append((low, high))
        return high / 4

    make(clock, draw, first_delay_seconds=1).run(failing(3))
    assert drawn == [(0, 1), (0, 2), (0, 4)]
    assert clock.sleeps == [0.25, 0.5, 1]


def test_a_thousand_tries_overflow_nothing():
    clock = Clock()
    retrier = make(clock, lambda *_: 1e-3, retry_deadline_seconds=120)
    assert retrier.run(failing(3000)) == "data"


@pytest.mark.parametrize("cause", ["unavailable", "timed_out", "broken_off"])
def test_the_deadline_is_for_all_tries_together(cause):
    clock = Clock()
    retrier = make(clock, first_delay_seconds=8, max_delay_seconds=8, retry_deadline_seconds=30)
    with pytest.raises(StoreError) as caught:
        retrier.run(failing(99, cause, clock=clock, took=3))
    assert caught.value.cause == cause
    assert caught.value.detail == "s3://b: x: 503 (given up after 3 tries in 25.0 s)"
    assert copy.copy(caught.value).detail == caught.value.detail  # as pickling does
    counts = retrier.counters.snapshot()
    assert (counts.num_requests, counts.num_retries, counts.num_failures) == (3, 2, 1)
    assert getattr(counts, f"num_{cause}") == 2


@pytest.mark.parametrize(
    "cause",
    ["not_found", "forbidden", "bad_name", "forked", "range_ignored", "short_read", "unreadable"],
)
def test_lasting_causes_are_raised_at_once(cause):
    clock = Clock()
    retrier = make(clock)
    with pytest.raises(StoreError, match=f"^{cause}: s3://b: x: 503$"):
        retrier.run(failing(1, cause))
    assert clock.sleeps == []
    assert retrier.counters.snapshot().num_failures == 1


def test_a_loop_in_a_loop_gives_up_once():
    clock = Clock()
    inner = make(clock, retry_deadline_seconds=20)
    outer = make(clock, retry_deadline_seconds=1000)
    with pytest.raises(StoreError) as caught:
        outer.run(lambda: inner.run(failing(99)))
    assert caught.value.detail.count("given up") == 1


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError):
        Retrier().run(lambda: 1 // 0)


def test_long_trouble_is_told_once_in_a_while(caplog):
    clock = Clock()
    retrier = make(clock, first_delay_seconds=3, max_delay_seconds=3, retry_deadline_seconds=90)
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError):
        retrier.run(failing(99))
    assert len(caplog.messages) == 3
    assert caplog.messages[0] == "unavailable: s3://b: x: 503; try 3 failed, 84 s left"


class TestClose:
    def test_ends_waits(self):
        retrier = Retrier(RetryRules(60.0, 60.0), draw=lambda _, high: high)
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(retrier.run, failing(9)) for _ in range(2)]
            while retrier.counters.snapshot().num_retries < 2:
                time.sleep(0.001)
            retrier.close()
            for future in waiting:
                with pytest.raises(
                    StoreError, match=r"unavailable: .*not tried again: it was closed"
                ):
                    future.result(5)

    def test_reads_after_it_are_tried_once(self):
        clock = Clock()
        retrier = make(clock)
        retrier.close()
        assert retrier.run(failing(0)) == "data"
        with pytest.raises(StoreError, match="closed"):
            retrier.run(failing(1))
        assert clock.sleeps == []
        assert retrier.counters.snapshot().num_failures == 1


def test_counts_of_many_threads():
    retrier = Retrier(RetryRules(first_delay_seconds=1e-6, max_delay_seconds=1e-6))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: retrier.run(failing(2)), range(200)))
    counts = retrier.counters.snapshot()
    assert (counts.num_requests, counts.num_retries) == (600, 400)


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ({"retry_deadline_seconds": 0}, "retry_deadline_seconds"),
        ({"first_delay_seconds": -1}, "first_delay_seconds"),
        ({"request_timeout_seconds": float("inf")}, "request_timeout_seconds"),
        ({"connect_timeout_seconds": float("nan")}, "connect_timeout_seconds"),
        ({"first_delay_seconds": 20.0}, "max_delay_seconds"),
        ({"stall_timeout_seconds": 90.0}, "request_timeout_seconds"),
        ({"retry_deadline_seconds": 5.0}, "retry_deadline_seconds"),
    ],
)
def test_impossible_rules(rules, field):
    with pytest.raises(ConfigError) as caught:
        RetryRules(**rules)
    assert caught.value.field == field
