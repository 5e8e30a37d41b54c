"""Stores that are folders far away: slow, or held back until a test lets their requests go."""

import random
import threading
import time

from grpo_stream.storage.blobs import adjacent_runs, span
from grpo_stream.storage.store import LocalStore


class RemoteStore:
    """A folder whose requests take between 0 and ``max_seconds``; it is not taken for local.

    Attributes:
        ranges: (name, offset, bytes) of each ranged read, in order.
        calls: Offsets of the ranged reads of each call, in order.
        whole: Name of each whole read, in order.
        on_bytes: Hears how many bytes a ranged read asks for, before they come.
    """

    def __init__(self, folder, max_seconds=0.0, seed=0):
        self._inner = LocalStore(folder)
        self._max_seconds = max_seconds
        self._random = random.Random(seed)
        self.ranges = []
        self.calls = []
        self.whole = []
        self.on_bytes = lambda _: None

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def read(self, name):
        self.whole.append(name)
        self.wait((name, None))
        return self._inner.read(name)

    def read_range(self, name, offset, num_bytes):
        return self.read_ranges(name, [(offset, num_bytes)])[0]

    def read_ranges(self, name, ranges):
        runs = [span(run) for run in adjacent_runs(ranges)]
        self.calls.append([offset for offset, _ in runs])
        for offset, num_bytes in runs:
            self.ranges.append((name, offset, num_bytes))
            self.on_bytes(num_bytes)
        self.wait(*((name, offset) for offset, _ in runs))
        return self._inner.read_ranges(name, ranges)

    def wait(self, *requests):
        """Until all of them, which are made at the same time, have been answered."""
        if self._max_seconds:
            time.sleep(max(self._random.uniform(0, self._max_seconds) for _ in requests))


class GatedStore(RemoteStore):
    """Each request waits until it is let go; ``waiting`` has those that do, as (name, offset)."""

    def __init__(self, folder):
        super().__init__(folder)
        self.waiting = {}
        self._lock = threading.Lock()
        self._is_open = False

    def wait(self, *requests):
        gates = {request: threading.Event() for request in requests}
        with self._lock:
            self.waiting |= gates
            if self._is_open:
                for gate in gates.values():
                    gate.set()
        assert all(gate.wait(20) for gate in gates.values())

    def let_go(self, requests):
        """Answers these requests, which must all be waiting at the same time."""
        end = time.monotonic() + 10
        while not requests <= self.waiting.keys():
            missing = requests - self.waiting.keys()
            assert time.monotonic() < end, f"{missing} wait for something else"
            time.sleep(0.002)
        with self._lock:
            for request in requests:
                self.waiting.pop(request).set()

    def open(self):
        """Answers everything from now on."""
        with self._lock:
            self._is_open = True
            for gate in self.waiting.values():
                gate.set()
