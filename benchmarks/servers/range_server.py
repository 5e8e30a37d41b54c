"""A bucket that serves a local folder, late but cheaply: what is timed is the client.

One thread answers everybody: it parses a request, waits until that is ``--delay-ms`` old and lets
the kernel send the file (``sendfile``). It speaks what reading takes of S3 (GET with and without a
range, HEAD, ListObjectsV2) over plain HTTP on loopback, and never looks at a signature. For a
bucket that can be written see ``s3_server.py``.
"""

import argparse
import heapq
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from benchmarks.servers.s3_server import Server

BUCKET = "bench"
_USAGE = "/-/usage"
_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
_ISO_DATE = "2026-01-01T00:00:00.000Z"
_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n")
_RANGE = re.compile(rb"\r\nrange: bytes=(\d+)-(\d*)", re.IGNORECASE)
_REASONS = {200: "OK", 206: "Partial Content", 404: "Not Found", 405: "Method Not Allowed"}


@dataclass(frozen=True)
class Served:
    """What a server has done since it started."""

    cpu_seconds: float
    num_requests: int
    num_bytes: int
    """Of bodies, that it sent."""

    def since(self, before: "Served") -> "Served":
        """What was done after ``before``."""
        return Served(
            self.cpu_seconds - before.cpu_seconds,
            self.num_requests - before.num_requests,
            self.num_bytes - before.num_bytes,
        )


def served(server: Server) -> Served:
    """Asks a server; this request is neither delayed nor counted."""
    connection = HTTPConnection(server.address)
    try:
        connection.request("GET", _USAGE)
        return Served(**json.loads(connection.getresponse().read()))
    finally:
        connection.close()


@contextmanager
def serve_folder(folder: str, delay_ms: float) -> Iterator[Server]:
    """Serves ``folder`` from a process of its own, each answer ``delay_ms`` late."""
    command = [sys.executable, "-m", __name__, folder, "--delay-ms", str(delay_ms)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Server(process.stdout.readline().strip() if process.stdout else "")
        # Leaving closes its input, which ends it; so does this process's death.


@dataclass
class _Answer:
    head: bytes
    fd: int = -1
    offset: int = 0
    num_left: int = 0
    """Bytes of the file that are still to be sent."""


@dataclass(eq=False)
class _Client:
    socket: socket.socket
    received: bytes = b""
    answer: _Answer | None = None


@dataclass
class _Bucket:
    """What a request is answered with."""

    folder: Path
    num_requests: int = 0
    num_bytes: int = 0
    _files: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> fd, size

    def answer(self, head: bytes, method: str, target: str) -> _Answer:
        if target == _USAGE:
            usage = Served(time.process_time(), self.num_requests, self.num_bytes)
            return _text(json.dumps(usage.__dict__))
        self.num_requests += 1
        url = urlsplit(target)
        name = unquote(url.path).removeprefix(f"/{BUCKET}").lstrip("/")
        if method not in ("GET", "HEAD"):
            return _Answer(_head(405, 0))
        if not name:
            return _text(self._listing(parse_qs(url.query)))
        fd, size = self._open(name)
        if fd < 0:
            return _Answer(_head(404, 0))
        start, stop, status, extra = 0, size, 200, ""
        if found := _RANGE.search(head):
            start = int(found[1])
            stop = min(size, int(found[2]) + 1) if found[2] else size
            status, extra = 206, f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        body = 0 if method == "HEAD" else stop - start
        self.num_bytes += body
        return _Answer(_head(status, stop - start, extra), fd, start, body)

    def _open(self, name: str) -> tuple[int, int]:
        if name not in self._files:
            path = self.folder / name
            if ".." in path.parts or not path.is_file():
                return -1, 0
            fd = os.open(path, os.O_RDONLY)
            self._files[name] = fd, os.fstat(fd).st_size
        return self._files[name]

    def _listing(self, query: dict[str, list[str]]) -> str:
        prefix = query.get("prefix", [""])[0]
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        names = [(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in paths]
        lines = [
            f"<Contents><Key>{escape(name)}</Key><LastModified>{_ISO_DATE}</LastModified>"
            f"<ETag>0</ETag><Size>{size}</Size></Contents>"
            for name, size in names
            if name.startswith(prefix)
        ]
        return (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<IsTruncated>false</IsTruncated>{''.join(lines)}</ListBucketResult>"
        )


class _Loop:
    """Reads requests, keeps answers until they are due, and writes them."""

    def __init__(self, bucket: _Bucket, delay_seconds: float) -> None:
        self.bucket = bucket
        self.delay_seconds = delay_seconds
        self.selector = selectors.DefaultSelector()
        self.due: list[tuple[float, int, _Client]] = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Serves until the standard input ends."""
        self.selector.register(sys.stdin, selectors.EVENT_READ, "end")
        while True:
            wait = max(0.0, self.due[0][0] - time.monotonic()) if self.due else None
            for key, events in self.selector.select(wait):
                if key.data == "end":
                    return
                if key.data is None:
                    self._accept()
                elif events & selectors.EVENT_READ:
                    self._read(key.data)
                else:
                    self._write(key.data)
            while self.due and self.due[0][0] <= time.monotonic():
                self._write(heapq.heappop(self.due)[2])

    def _accept(self) -> None:
        accepted, _ = self.listener.accept()
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(accepted, selectors.EVENT_READ, _Client(accepted))

    def _read(self, client: _Client) -> None:
        try:
            data = client.socket.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.received += data
        if client.answer is None:
            self._take_request(client)

    def _take_request(self, client: _Client) -> None:
        head, end, rest = client.received.partition(b"\r\n\r\n")
        if not end:
            return
        client.received = rest
        if not (request := _REQUEST.match(head + b"\r\n")):
            self._drop(client)
            return
        target = request[2].decode()
        client.answer = self.bucket.answer(head, request[1].decode(), target)
        delay = 0 if target == _USAGE else self.delay_seconds
        heapq.heappush(self.due, (time.monotonic() + delay, id(client), client))

    def _write(self, client: _Client) -> None:
        answer = client.answer
        if answer is None:
            return
        try:
            if answer.head:
                client.socket.send(answer.head, socket.MSG_MORE if answer.num_left else 0)
                answer.head = b""
            while answer.num_left:
                sent = os.sendfile(
                    client.socket.fileno(), answer.fd, answer.offset, answer.num_left
                )
                answer.offset += sent
                answer.num_left -= sent
        except BlockingIOError:
            self.selector.modify(client.socket, selectors.EVENT_WRITE, client)
            return
        except OSError:  # the client went away
            self._drop(client)
            return
        self.selector.modify(client.socket, selectors.EVENT_READ, client)
        client.answer = None
        self._take_request(client)

    def _drop(self, client: _Client) -> None:
        client.answer = None  # what is due to it is not sent
        with suppress(KeyError, ValueError):
            self.selector.unregister(client.socket)
        client.socket.close()


def _head(status: int, num_bytes: int, extra: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {num_bytes}\r\n"
        f'ETag: "0"\r\nLast-Modified: {_DATE}\r\nAccept-Ranges: bytes\r\n{extra}\r\n'
    ).encode()


def _text(text: str) -> _Answer:
    body = text.encode()
    return _Answer(_head(200, len(body), "Content-Type: application/xml\r\n") + body)


def main() -> None:
    """Prints host and port, then serves until its input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay-ms", type=float, default=30)
    args = parser.parse_args()
    loop = _Loop(_Bucket(args.folder), args.delay_ms / 1000)
    print(f"127.0.0.1:{loop.listener.getsockname()[1]}", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
