"""A file that is written and hashed by a thread of its own, beside its author's work."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from grpo_stream.storage.atomic_files import naming
from grpo_stream.storage.blobs import Data

_BATCH_BYTES = 2**20  # so large that the thread seldom asks for the interpreter's lock


class HashedFile:
    """A new file, unbuffered, and the SHA-256 of what is written to it.

    What is written gathers in one of two buffers of 1 MiB; a full one is written and hashed in
    the background while the other one fills. An error of the disk is raised by a later
    :meth:`write` or by :meth:`finish`.

    Args:
        path: Is replaced if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.raw = path.open("wb", buffering=0)
        """The open file; complete after :meth:`finish`."""
        self.num_bytes = 0
        """Bytes given to :meth:`write`."""
        self._sha256 = hashlib.sha256()
        # Two buffers used in turn: fresh memory costs a page fault every 4 KiB, which is more
        # than copying into memory that is there.
        self._buffer, self._other = (memoryview(bytearray(_BATCH_BYTES)) for _ in range(2))
        self._num_gathered = 0
        self._thread: ThreadPoolExecutor | None = None
        self._batch: Future[None] | None = None

    def write(self, chunks: Iterable[Data]) -> None:
        """Appends ``chunks``.

        Raises:
            OSError: an earlier batch could not be written.
            ValueError: the file is closed.
        """
        if self.raw.closed:
            raise ValueError("the file is closed")
        for chunk in chunks:
            self.num_bytes += len(chunk)
            start, end = self._num_gathered, self._num_gathered + len(chunk)
            if end <= _BATCH_BYTES:
                self._buffer[start:end] = chunk
                self._num_gathered = end
            else:
                self._gather(chunk)

    def finish(self) -> str:
        """Writes what is left; the file stays open.

        Returns:
            SHA-256 of the whole content in hex.

        Raises:
            OSError: something could not be written.
        """
        self._wait()
        self._put(self._buffer[: self._num_gathered])
        self._num_gathered = 0
        self._end_thread()
        return self._sha256.hexdigest()

    def close(self) -> None:
        """Closes the file; what was not written yet is lost."""
        self._end_thread()
        self.raw.close()

    def _gather(self, chunk: Data) -> None:
        rest = memoryview(chunk)
        while rest:
            start = self._num_gathered
            num_bytes = min(len(rest), _BATCH_BYTES - start)
            self._buffer[start : start + num_bytes] = rest[:num_bytes]
            self._num_gathered += num_bytes
            rest = rest[num_bytes:]
            if self._num_gathered == _BATCH_BYTES:
                self._wait()
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, "shard-writer")
                self._batch = self._thread.submit(self._put, self._buffer)
                self._buffer, self._other = self._other, self._buffer
                self._num_gathered = 0

    def _wait(self) -> None:
        if self._batch is not None:
            batch, self._batch = self._batch, None
            batch.result()

    def _put(self, data: memoryview) -> None:
        self._sha256.update(data)
        with naming(self._path):
            while data:  # a full disk, a signal or the kernel's 2 GiB limit may cut a write short
                data = data[os.write(self.raw.fileno(), data) :]

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
