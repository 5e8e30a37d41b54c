"""A stand-in for S3 that costs little CPU, so that what is timed is the client, not the server.

It speaks the part of the protocol that :class:`grpo_stream.storage.object_store.ObjectStore` uses,
over plain HTTP on loopback, without looking at signatures. Each request is answered a set time
after it came in whole. Objects that were put in one request are kept in memory; what comes as a
multipart upload is read from the socket and dropped, of which only the size is kept.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

_BUCKET = "bench"
_USAGE_PATH = "/-/usage"
_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
_ISO_DATE = "2026-01-01T00:00:00.000Z"
_READ_BYTES = 2**20


@dataclass(frozen=True)
class Usage:
    """What the server has done since it started."""

    cpu_seconds: float
    num_requests: int
    num_bytes: int
    """That were uploaded."""

    def since(self, before: "Usage") -> "Usage":
        """What was done after ``before``."""
        return Usage(
            self.cpu_seconds - before.cpu_seconds,
            self.num_requests - before.num_requests,
            self.num_bytes - before.num_bytes,
        )


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    address: str
    """Host and port."""
    url: str = f"s3://{_BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in ``os.environ``."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.address}",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def usage(self) -> Usage:
        """Asks the server; this request is neither delayed nor counted."""
        connection = HTTPConnection(self.address)
        try:
            connection.request("GET", _USAGE_PATH)
            return Usage(**json.loads(connection.getresponse().read()))
        finally:
            connection.close()


@contextmanager
def serve(latency_ms: float) -> Iterator[Server]:
    """Runs a server in a process of its own.

    Args:
        latency_ms: Time in milliseconds between the end of each request and its answer.
    """
    command = [sys.executable, "-m", __name__, "--latency-ms", str(latency_ms)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Server(process.stdout.readline().strip() if process.stdout else "")
        # Leaving closes its input, which ends it; so does this process's death.


@dataclass
class _Bucket:
    objects: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    uploads: Counter[str] = field(default_factory=Counter)
    """Bytes so far by upload."""
    num_requests: int = 0
    num_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, latency_seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.latency_seconds = latency_seconds
        self.bucket = _Bucket()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: Any) -> None:  # noqa: ARG002 - it would print every request
        return

    def do_GET(self) -> None:
        if self.path == _USAGE_PATH:
            self._answer(200, json.dumps(_usage(self.server.bucket)).encode())
            return
        name, query = self._begin()
        if not name:
            self._answer(200, self._listing(query).encode(), {"Content-Type": "application/xml"})
            return
        data = self.server.bucket.objects.get(name)
        if data is None:
            self._answer(404)
            return
        headers = {"ETag": '"0"', "Last-Modified": _DATE}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match[1]), int(match[2] or len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            self._answer(206, data[start:stop], headers)
        else:
            self._answer(200, data, headers)

    def do_HEAD(self) -> None:
        name, _ = self._begin()
        size = self.server.bucket.sizes.get(name)
        if size is None:
            self._answer(404)
        else:
            self._answer(200, b"", {"ETag": '"0"', "Last-Modified": _DATE}, size)

    def do_PUT(self) -> None:
        bucket = self.server.bucket
        url = urlsplit(self.path)
        upload = parse_qs(url.query).get("uploadId")
        data = self._body(keep=upload is None)
        name, _ = self._begin()
        with bucket.lock:
            bucket.num_bytes += self._num_body_bytes
            if upload is not None:
                bucket.uploads[upload[0]] += self._num_body_bytes
            else:
                bucket.objects[name] = data
                bucket.sizes[name] = len(data)
        self._answer(200, b"", {"ETag": '"0"'})

    def do_POST(self) -> None:
        bucket = self.server.bucket
        body = self._body(keep=True)
        name, query = self._begin()
        xml = ""
        if "delete" in query:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self._remove(unescape(key))
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            xml = f"<DeleteResult>{deleted}</DeleteResult>"
        elif "uploads" in query:
            upload = quote(f"{name}-{time.monotonic_ns()}", safe="")
            xml = f"<InitiateMultipartUploadResult><UploadId>{escape(upload)}</UploadId></Initiate"
            xml += "MultipartUploadResult>"
        else:
            with bucket.lock:
                bucket.sizes[name] = bucket.uploads.pop(query["uploadId"][0])
            xml = "<CompleteMultipartUploadResult><ETag>0</ETag></CompleteMultipartUploadResult>"
        self._answer(200, xml.encode(), {"Content-Type": "application/xml"})

    def do_DELETE(self) -> None:
        name, query = self._begin()
        if "uploadId" in query:
            self.server.bucket.uploads.pop(query["uploadId"][0], None)
        else:
            self._remove(name)
        self._answer(204)

    def _begin(self) -> tuple[str, dict[str, list[str]]]:
        with self.server.bucket.lock:
            self.server.bucket.num_requests += 1
        time.sleep(self.server.latency_seconds)
        url = urlsplit(self.path)
        name = unquote(url.path).removeprefix(f"/{_BUCKET}").lstrip("/")
        return name, parse_qs(url.query, keep_blank_values=True)

    def _body(self, *, keep: bool) -> bytes:
        missing = self._num_body_bytes = int(self.headers.get("Content-Length", 0))
        if keep:
            return self.rfile.read(missing)
        buffer = memoryview(bytearray(_READ_BYTES))
        while missing > 0:
            num_read = self.rfile.readinto(buffer[:missing])
            if not num_read:
                break
            missing -= num_read
        return b""

    def _remove(self, name: str) -> None:
        with self.server.bucket.lock:
            self.server.bucket.objects.pop(name, None)
            self.server.bucket.sizes.pop(name, None)

    def _listing(self, query: dict[str, list[str]]) -> str:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        folders: set[str] = set()
        lines = []
        for name, size in sorted(self.server.bucket.sizes.items()):
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            lines.append(
                f"<Contents><Key>{escape(name)}</Key><LastModified>{_ISO_DATE}</LastModified>"
                f"<ETag>0</ETag><Size>{size}</Size></Contents>"
            )
        lines += [
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            for folder in sorted(folders)
        ]
        return (
            f"<ListBucketResult><Name>{_BUCKET}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<IsTruncated>false</IsTruncated>{''.join(lines)}</ListBucketResult>"
        )

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        num_bytes: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body) if num_bytes is None else num_bytes))
        self.end_headers()
        self.wfile.write(body)


def _usage(bucket: _Bucket) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "num_requests": bucket.num_requests,
        "num_bytes": bucket.num_bytes,
    }


def main() -> None:
    """Prints host and port, then serves until its input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=30)
    server = _Server(parser.parse_args().latency_ms / 1000)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
