"""A web server on a loopback port that goes wrong as it is told, for tests.

``http://host/bucket/set`` and S3's GET and HEAD of ``s3://bucket/set`` ask the same of it, so one
server stands for both.
"""

import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from grpo_stream.storage.retrying_store import RetryRules

RULES = RetryRules(
    first_delay_seconds=0.001,
    max_delay_seconds=0.01,
    retry_deadline_seconds=30.0,
    stall_timeout_seconds=10.0,
    request_timeout_seconds=20.0,
)
"""Short waits between tries. A busy machine is no stall: whoever counts tries must not count it."""

HASTY_RULES = replace(
    RULES, retry_deadline_seconds=5.0, stall_timeout_seconds=0.3, request_timeout_seconds=2.0
)
"""What hangs is given up soon; a busy machine may be taken for it, so tries are only bounded."""


def rules_for(faults):
    """The rules to test the faults with, and whether the number of tries is certain."""
    hangs = not {"stall", "silent"}.isdisjoint(faults)
    return (HASTY_RULES, False) if hangs else (RULES, True)


REFUSALS = {
    "slow_down": (503, "SlowDown"),
    "internal": (500, "InternalError"),
    "too_many": (429, "TooManyRequests"),
    "gone": (404, "NoSuchKey"),
    "denied": (403, "AccessDenied"),
    "unauthorized": (401, "InvalidCredentials"),
    "expired": (400, "ExpiredToken"),  # what S3 says of a session token that ran out
    "not_implemented": (501, "NotImplemented"),
}
"""Fault -> status and S3's word for it."""

BREAKS = ("reset", "truncated", "short", "stall", "silent", "no_range")
"""What else may happen to an answer.

``reset``: half of the body, then the connection is torn down; ``truncated``: half of it, then a
clean end; ``short``: half of it, declared as such; ``stall``: half of it, then nothing more;
``silent``: nothing at all; ``no_range``: the whole object, whatever range was asked for.
"""


class FaultyServer(ThreadingHTTPServer):
    """Serves objects, with faults.

    Attributes:
        objects: ``bucket/key`` -> content.
        faults: What happens to the next GET requests, in order; ``""`` is no fault.
        always: Part of a name -> what happens to each GET of such names.
        num_gets: How many GET requests came.
        ranges: (name, ``Range`` header) of each GET, in order.
        flips: Part of a name -> [byte of the object, how many more times it is sent wrong].
    """

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.objects: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.always: dict[str, str] = {}
        self.ranges: list[tuple[str, str]] = []
        self.flips: dict[str, list[float]] = {}
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def num_gets(self):
        return len(self.ranges)

    def next_fault(self, name, wanted):
        with self.lock:
            self.ranges.append((name, wanted))
            for part, fault in self.always.items():
                if part in name:
                    return fault
            return self.faults.pop(0) if self.faults else ""

    def flipped(self, name, data, first):
        """``data``, which starts at byte ``first`` of the object, with the byte to flip flipped."""
        with self.lock:
            for part, (place, num_times) in self.flips.items():
                if part in name and num_times > 0 and first <= place < first + len(data):
                    self.flips[part][1] -= 1
                    data = bytearray(data)
                    data[place - first] ^= 1
        return data

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is what some tests are about


@contextmanager
def faulty_server(port=0):
    """A running server; stopped at the block's end."""
    with FaultyServer(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for a delayed acknowledgement

    def do_GET(self):
        name = self.path.lstrip("/").partition("?")[0]
        wanted = self.headers.get("Range", "")
        fault = self.server.next_fault(name, wanted) if self.command == "GET" else ""
        data = self.server.objects.get(name, b"")
        if name not in self.server.objects:
            fault = "gone"
        if fault in REFUSALS:
            status, code = REFUSALS[fault]
            return self._answer(status, f"<Error><Code>{code}</Code></Error>".encode())
        if fault == "silent":
            return self._hang()
        headers = {"ETag": f'"{len(data)}"', "Last-Modified": formatdate(0, usegmt=True)}
        total, status = len(data), 200
        if (match := re.match(r"bytes=(\d+)-(\d*)", wanted)) and fault != "no_range":
            first, last = int(match[1]), min(int(match[2] or total), total - 1)
            if first >= total:
                return self._answer(416, b"", {"Content-Range": f"bytes */{total}"})
            if fault == "short":
                last = first + (last + 1 - first) // 2 - 1
            data, status = self.server.flipped(name, data[first : last + 1], first), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        else:
            data = self.server.flipped(name, data[: total // 2 if fault == "short" else total], 0)
        return self._answer(status, data, headers, fault)

    do_HEAD = do_GET  # noqa: N815 - the base class's spelling

    def log_message(self, *args):
        pass

    def _answer(self, status, data, headers=None, fault=""):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        broken = fault in ("reset", "truncated", "stall")
        self.wfile.write(data[: len(data) // 2] if broken else data)
        self.wfile.flush()
        if fault == "stall":
            self._hang()
        elif fault == "reset":
            self.close_connection = True
            self.server.closing.wait(0.03)  # a reset takes back what the client has not yet read
            # Lingering for no time sends RST in place of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault == "truncated":
            self.close_connection = True

    def _hang(self):
        self.close_connection = True
        self.server.closing.wait(60)
