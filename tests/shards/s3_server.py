"""The part of S3's REST interface that obstore uses, on a loopback port, for tests.

Unsigned requests, one bucket per first path component, everything in memory.
"""

import hashlib
import re
import threading
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class S3Server(ThreadingHTTPServer):
    """Holds the objects, and tells what was asked of it.

    Attributes:
        objects: ``bucket/key`` -> content.
        requests: (method, ``bucket/key``, query names) in order.
        cuts: How many of the next GET answers break off after ``cut_bytes``.
        failures: ``bucket/key`` -> HTTP status that a write of it gets.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[tuple[str, str, tuple[str, ...]]] = []
        self.cuts = 0
        self.cut_bytes = 1 << 20
        self.failures: dict[str, int] = {}
        self.lock = threading.Lock()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is what some tests are about


@contextmanager
def s3_server():
    """A running server; stopped at the block's end."""
    with S3Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def s3_environment(endpoint):
    """The environment variables that lead obstore to the server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


class _Handler(BaseHTTPRequestHandler):
    server: S3Server
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name, query = self._target()
        if "list-type" in query:
            return self._list(name, query)
        data = self.server.objects.get(name)
        if data is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        tag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        if self.headers.get("If-Match", tag) != tag:
            return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        headers = {"ETag": tag, "Last-Modified": formatdate(0, usegmt=True)}
        total, status = len(data), 200
        if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or total), total - 1)
            data, status = data[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        with self.server.lock:
            cut = self.command == "GET" and self.server.cuts > 0
            self.server.cuts -= cut
        return self._answer(status, data, headers, cut=cut)

    do_HEAD = do_GET  # noqa: N815 - the base class's spelling

    def do_PUT(self):
        name, query = self._target()
        data = self._body()
        if name in self.server.failures:
            return self._answer(self.server.failures[name], b"<Error><Code>Denied</Code></Error>")
        tag = {"ETag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'}
        with self.server.lock:
            if "partNumber" in query:
                self.server.parts[query["uploadId"]][int(query["partNumber"])] = data
            else:
                self.server.objects[name] = data
        return self._answer(200, b"", tag)

    def do_POST(self):
        name, query = self._target()
        body = self._body()
        if "delete" in query:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            with self.server.lock:
                for key in keys:
                    self.server.objects.pop(f"{name.rstrip('/')}/{unquote(key)}", None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        if "uploads" in query:
            upload = f"upload-{len(self.server.requests)}"
            self.server.parts[upload] = {}
            answer = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
            return self._answer(200, f"{answer}</InitiateMultipartUploadResult>".encode())
        with self.server.lock:
            parts = self.server.parts.pop(query["uploadId"])
            self.server.objects[name] = b"".join(parts[number] for number in sorted(parts))
        done = b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        return self._answer(200, done)

    def do_DELETE(self):
        name, query = self._target()
        with self.server.lock:
            if "uploadId" in query:
                self.server.parts.pop(query["uploadId"], None)
            else:
                self.server.objects.pop(name, None)
        return self._answer(204, b"")

    def log_message(self, *args):
        pass

    def _list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        found, folders = [], set()
        for name, data in sorted(self.server.objects.items()):
            key = name.removeprefix(f"{bucket.rstrip('/')}/")
            if key == name or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            found.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                "<LastModified>2020-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
            )
        found += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders]
        text = f"<ListBucketResult>{''.join(found)}</ListBucketResult>"
        self._answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _target(self):
        url = urlsplit(self.path)
        name = unquote(url.path).lstrip("/")
        query = {key: values[0] for key, values in parse_qs(url.query, True).items()}
        with self.server.lock:
            self.server.requests.append((self.command, name, tuple(query)))
        return name, query

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status, data, headers=None, *, cut=False):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: self.server.cut_bytes] if cut else data)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
