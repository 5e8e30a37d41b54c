"""Requests and answers of HTTP/1.1 as bytes, and how an answer goes wrong that is told to.

A fault is one of :data:`REFUSALS` or:

* ``reset``: half of the body, then the connection is torn down,
* ``truncated``: half of the body, then a clean end,
* ``short``: half of the body, declared as such,
* ``stall``: half of the body, then nothing more; ``silent``: nothing at all,
* ``no_range``: the whole object, whatever range was asked for.
"""

import asyncio
import re
import socket
import struct
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from benchmarks.servers.s3_xml import error

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

_REQUEST = re.compile(rb"([A-Z]+) (/([^ ?]*)\??(\S*)) ")
_LENGTH, _RANGE, _IF_MATCH = (
    re.compile(rb"\r\n" + name + rb": *([^\r]*)", re.IGNORECASE)
    for name in (b"content-length", b"range", b"if-match")
)
_HANG_SECONDS = 60


class Request(NamedTuple):
    """What was asked; of writes without the content."""

    method: str
    target: str
    """Path and query as they came."""
    name: str
    """``bucket/key``."""
    query: Mapping[str, str]
    range: str
    """The header of that name; empty without one."""
    if_match: str


class Answer(NamedTuple):
    """What is said."""

    status: int
    body: bytes | bytearray | memoryview = b""
    headers: Mapping[str, str] = {}


def parse_request(head: bytes) -> tuple[Request, int]:
    """A request, from its first line to the empty one, and how many bytes of content follow it.

    Raises:
        ConnectionError: it is none.
    """
    found = _REQUEST.match(head)
    if found is None:
        raise ConnectionError(f"no request: {head[:80]!r}")
    method, target, path, query = (part.decode() for part in found.groups())
    length, wanted, if_match = (
        field[1].decode() if (field := pattern.search(head)) else ""
        for pattern in (_LENGTH, _RANGE, _IF_MATCH)
    )
    words = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
    request = Request(method, target, unquote(path), words, wanted, if_match)
    return request, int(length or 0)


async def send_answer(
    writer: asyncio.StreamWriter, request: Request, answer: Answer, fault: str
) -> bool:
    """Sends an answer, or what the fault leaves of it; says whether the connection stays."""
    if fault == "silent":
        await asyncio.sleep(_HANG_SECONDS)
        return False
    status, body, headers = answer
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [] if status == HTTPStatus.NO_CONTENT else [f"Content-Length: {len(body)}"]
    is_broken = fault in ("reset", "truncated", "stall")
    num_bytes = 0 if request.method == "HEAD" else len(body) // 2 if is_broken else len(body)
    writer.writelines(["\r\n".join([*lines, "", ""]).encode(), body[:num_bytes]])
    await writer.drain()
    if fault == "stall":
        await asyncio.sleep(_HANG_SECONDS)
    elif fault == "reset":
        await asyncio.sleep(0.03)  # a reset takes back what the client has not yet read
        # Lingering for no time sends RST in place of FIN.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    return not is_broken


def refused(fault: str) -> Answer:
    """What S3 says where ``fault``, one of :data:`REFUSALS`, keeps it from answering."""
    status, code = REFUSALS[fault]
    return Answer(status, error(code))
