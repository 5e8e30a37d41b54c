"""Reading ahead in a known order, so that a bucket's answers are there when they are needed."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

NUM_REQUESTS = 16
MAX_BYTES = 64 * 2**20


class ReadAhead:
    """Reads named blobs in the background, in the order in which they will be taken.

    At most ``num_requests`` reads run at once, and none is started while blobs of ``max_bytes``
    or more wait to be taken: so many bytes are held, and one blob for each read that runs.

    Args:
        read: Reads one blob; is called from several threads.
        num_requests: Reads at once.
        max_bytes: Bytes that may wait.
    """

    def __init__(
        self,
        read: Callable[[str], bytes],
        num_requests: int = NUM_REQUESTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._read = read
        self._num_requests = num_requests
        self._max_bytes = max_bytes
        self._pool = ThreadPoolExecutor(num_requests, thread_name_prefix="read-ahead")
        self._lock = threading.Lock()
        self._planned: deque[str] = deque()
        self._started: dict[str, _Blob] = {}  # in the order in which they are taken
        self._num_running = 0
        self._num_waiting_bytes = 0

    def plan(self, names: Iterable[str]) -> None:
        """Begins to read; what was planned before and not taken is dropped.

        Args:
            names: In the order of their first :meth:`take`.
        """
        with self._lock:
            self._drop_all()
            self._planned.extend(dict.fromkeys(names))
            self._start_more()

    def take(self, name: str) -> bytes:
        """The bytes of a blob, waited for where it is on its way, else read now.

        Blobs that come before it in the plan are dropped, as nobody took them.

        Raises:
            Exception: whatever ``read`` raised for it.
        """
        future = None
        with self._lock:
            if name in self._started:
                future = self._started[name].future
                while self._drop_first() != name:
                    pass
                self._start_more()
        return self._read(name) if future is None else future.result()

    def close(self) -> None:
        """Drops the plan and ends the threads."""
        with self._lock:
            self._drop_all()
        self._pool.shutdown()

    def _drop_all(self) -> None:
        self._planned.clear()
        while self._started:
            self._drop_first()

    def _drop_first(self) -> str:
        name = next(iter(self._started))
        blob = self._started.pop(name)
        blob.is_wanted = False
        self._num_waiting_bytes -= blob.num_bytes
        return name

    def _start_more(self) -> None:
        while (
            self._planned
            and self._num_running < self._num_requests
            and self._num_waiting_bytes < self._max_bytes
        ):
            name = self._planned.popleft()
            blob = self._started[name] = _Blob()
            self._num_running += 1
            self._pool.submit(self._run, name, blob)

    def _run(self, name: str, blob: "_Blob") -> None:
        data, error = b"", None
        try:
            data = self._read(name)
        except BaseException as caught:  # noqa: BLE001 - it is raised where the blob is taken
            error = caught
        with self._lock:
            self._num_running -= 1
            if blob.is_wanted:
                blob.num_bytes = len(data)
                self._num_waiting_bytes += len(data)
            self._start_more()
        if error is None:
            blob.future.set_result(data)
        else:
            blob.future.set_exception(error)


@dataclass
class _Blob:
    future: "Future[bytes]" = field(default_factory=Future)
    num_bytes: int = 0
    """Counted as waiting."""
    is_wanted: bool = True
    """Neither taken nor dropped."""
