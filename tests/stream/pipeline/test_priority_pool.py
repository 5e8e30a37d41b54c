import threading
import time
import weakref
from concurrent.futures import CancelledError

import pytest

from grpo_stream.stream.pipeline.priority_pool import PriorityPool

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def pool():
    pool = PriorityPool(1, "test-pool")
    yield pool
    pool.close()


@pytest.fixture
def gate(pool):
    """Keeps the pool's one thread busy until it is set."""
    gate, is_busy = threading.Event(), threading.Event()

    def wait():
        is_busy.set()
        gate.wait(20)

    pool.submit(0, wait)
    assert is_busy.wait(20)
    yield gate
    gate.set()


def test_urgent_tasks_first_then_in_order_of_submission(pool, gate):
    done = []
    futures = [
        pool.submit(
            priority, lambda priority=priority, number=number: done.append((priority, number))
        )
        for number, priority in enumerate((5, 3, 9, 3, 0, 5))
    ]
    gate.set()
    for future in futures:
        future.result(20)
    assert done == [(0, 4), (3, 1), (3, 3), (5, 0), (5, 5), (9, 2)]


def test_a_task_may_bring_further_ones_forward(pool, gate):
    done = []
    pool.submit(2, lambda: done.append("later"))
    pool.submit(1, lambda: pool.submit(1, lambda: done.append("sooner")))
    gate.set()
    pool.submit(3, int).result(20)
    assert done == ["sooner", "later"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt("no"), SystemExit(3)])
def test_errors_are_raised_where_the_result_is_asked_for(pool, error):
    def fail():
        raise error

    failed = pool.submit(0, fail)
    with pytest.raises(type(error)):
        failed.result(20)
    assert pool.submit(0, lambda: "and the thread lives on").result(20)


def test_cancelled_tasks_do_not_run(pool, gate):
    ran = []
    assert pool.submit(1, lambda: ran.append(1)).cancel()
    gate.set()
    pool.submit(2, int).result(20)
    assert ran == []


def test_threads_work_at_the_same_time():
    pool = PriorityPool(3, "test-pool")
    barrier = threading.Barrier(3)
    futures = [pool.submit(0, lambda: barrier.wait(20)) for _ in range(3)]
    assert sorted(future.result(20) for future in futures) == [0, 1, 2]
    pool.close()


class TestClose:
    def test_drops_what_has_not_begun_and_ends_the_threads(self, pool, gate):
        waiting = pool.submit(1, int)
        gate.set()
        pool.close()
        assert waiting.cancelled() or waiting.done()
        assert not any(t.name.startswith("test-pool") for t in threading.enumerate())

    def test_does_not_wait_for_what_hangs(self, pool, gate):
        waiting = pool.submit(1, int)
        started = time.monotonic()
        pool.close(0.05)
        assert time.monotonic() - started < 1
        assert waiting.cancelled()

    def test_what_comes_after_it_is_cancelled(self, pool):
        pool.close()
        late = pool.submit(0, int)
        with pytest.raises(CancelledError):
            late.result(1)

    def test_twice(self, pool):
        pool.close()
        pool.close()

    def test_results_are_not_held(self, pool):
        class Result:
            pass

        future = pool.submit(0, Result)
        held = weakref.ref(future.result(20))
        del future
        pool.submit(0, int).result(20)
        assert held() is None
