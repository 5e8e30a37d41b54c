"""An object store on loopback: S3's protocol and plain HTTP, late and faulty where it is told to.

``http://host/bucket/key`` and S3's GET and HEAD of ``s3://bucket/key`` ask the same of it, so one
server stands for both; signatures are never looked at. One event loop answers everybody, so that it
costs little beside the client that is timed or tested. It is neither complete nor strict: what
needs a real server is tested against moto, fake-gcs-server and azurite.
"""

import asyncio
import mmap
import re
import threading
from pathlib import Path

from benchmarks.servers import s3_xml
from benchmarks.servers.http_messages import (
    REFUSALS,
    Answer,
    Request,
    parse_request,
    refused,
    send_answer,
)

_BYTES = re.compile(r"bytes=(\d+)-(\d*)")
_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
_BUFFER_BYTES = 2**20


def client_environment(url: str) -> dict[str, str]:
    """The environment variables that lead an S3 client to a server at ``url``."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


class ObjectServer:
    """Serves from a thread of this process, from the start of a ``with`` block to its end.

    Args:
        port: To listen at; 0 for any free one.
        delay_seconds: From the end of each request to its answer.
        drops_parts: Keep of multipart uploads their sizes alone; they then read as zeros.

    Attributes:
        objects: ``bucket/key`` -> content.
        requests: All that came, in order.
        faults: What happens to the next GET requests, in order (see
            :mod:`benchmarks.servers.http_messages`); ``""`` is no fault.
        always: Part of a name -> what happens to each request but HEAD for such names.
        flips: Part of a name -> [byte of the object, how many more times it is sent wrong].
        num_sent_bytes: Of bodies.
        num_received_bytes: Of bodies.
    """

    def __init__(
        self, port: int = 0, *, delay_seconds: float = 0.0, drops_parts: bool = False
    ) -> None:
        self.objects: dict[str, bytes | memoryview] = {}
        self.requests: list[Request] = []
        self.faults: list[str] = []
        self.always: dict[str, str] = {}
        self.flips: dict[str, list[float]] = {}
        self.num_sent_bytes = self.num_received_bytes = 0
        self.port = port
        self._delay_seconds, self._drops_parts = delay_seconds, drops_parts
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        """Of the server itself."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """See :func:`client_environment`."""
        return client_environment(self.url)

    @property
    def gets(self) -> list[tuple[str, str]]:
        """Name and range of each GET so far, in order."""
        return [(one.name, one.range) for one in self.requests if one.method == "GET"]

    def __enter__(self) -> "ObjectServer":  # noqa: PYI034 - Self is in typing from 3.11 on
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listens from now on."""
        self._thread.start()
        listening = asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=_BUFFER_BYTES, backlog=512
        )
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]

    def add_folder(self, folder: str | Path, prefix: str) -> None:
        """Serves the files below ``folder`` as ``prefix/path``; they are mapped, not read."""
        for path in Path(folder).rglob("*"):
            if path.is_file():
                self.objects[f"{prefix}/{path.relative_to(folder).as_posix()}"] = _mapped(path)

    def stop(self) -> None:
        """Stops listening and ends all connections; stopping twice is harmless."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection, until a fault or its client ends it."""
        try:
            is_open = True
            while is_open:
                request, num_bytes = parse_request(await reader.readuntil(b"\r\n\r\n"))
                body = await self._read_body(reader, num_bytes, request)
                self.requests.append(request)
                await asyncio.sleep(self._delay_seconds)
                fault = self._next_fault(request)
                is_open = await send_answer(
                    writer, request, self._answer(request, body, fault), fault
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client hung up
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            writer.close()

    async def _read_body(
        self, reader: asyncio.StreamReader, num_bytes: int, request: Request
    ) -> bytes:
        self.num_received_bytes += num_bytes
        if not (self._drops_parts and "uploadId" in request.query):
            return await reader.readexactly(num_bytes)
        num_left = num_bytes
        while num_left and (part := await reader.read(min(num_left, _BUFFER_BYTES))):
            num_left -= len(part)
        return bytes(num_bytes)  # of a size, but without memory until somebody looks

    def _next_fault(self, request: Request) -> str:
        if request.method == "HEAD":
            return ""
        for part, fault in self.always.items():
            if part in request.name:
                return fault
        return self.faults.pop(0) if self.faults and request.method == "GET" else ""

    def _answer(self, request: Request, body: bytes, fault: str) -> Answer:
        if fault in REFUSALS:
            return refused(fault)
        if request.method in ("GET", "HEAD"):
            if "list-type" in request.query:
                return self._list(request)
            answer = self._read(request, fault)
            self.num_sent_bytes += len(answer.body) if request.method == "GET" else 0
            return answer
        return self._write(request, body)

    def _list(self, request: Request) -> Answer:
        query = request.query
        wanted = (query.get("prefix", ""), query.get("delimiter", ""))
        listing = s3_xml.listing(self.objects, request.name, *wanted)
        return Answer(200, listing, {"Content-Type": "application/xml"})

    def _read(self, request: Request, fault: str) -> Answer:
        data = self.objects.get(request.name)
        if data is None:
            return refused("gone")
        tag = s3_xml.tag_of(data)
        if request.if_match not in ("", tag):
            return Answer(412, s3_xml.error("PreconditionFailed"))
        first, stop, total = 0, len(data), len(data)
        headers = {"ETag": tag, "Last-Modified": _DATE}
        wanted = _BYTES.match(request.range) if fault != "no_range" else None
        if wanted:
            first, stop = int(wanted[1]), min(int(wanted[2] or total) + 1, total)
            if first >= total:
                return Answer(416, headers={"Content-Range": f"bytes */{total}"})
        if fault == "short":
            stop = first + (stop - first) // 2
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{total}"
        part = self._flipped(request.name, memoryview(data)[first:stop], first)
        return Answer(206 if wanted else 200, part, headers)

    def _flipped(self, name: str, data: memoryview, first: int) -> memoryview:
        """``data``, from byte ``first`` of its object on, with the byte to flip flipped."""
        for part, (place, num_times) in self.flips.items():
            if part in name and num_times > 0 and first <= place < first + len(data):
                self.flips[part][1] -= 1
                copy = bytearray(data)
                copy[int(place) - first] ^= 1
                data = memoryview(copy)
        return data

    def _write(self, request: Request, body: bytes) -> Answer:
        method, name, query = request.method, request.name, request.query
        upload = query.get("uploadId", "")
        if method == "PUT":
            if upload:
                self._uploads[upload][int(query["partNumber"])] = body
            else:
                self.objects[name] = body
            return Answer(200, headers={"ETag": s3_xml.tag_of(body)})
        if method == "DELETE":
            self._uploads.pop(upload, None)
            if not upload:
                self.objects.pop(name, None)
            return Answer(204)
        if upload:
            parts = [part for _, part in sorted(self._uploads.pop(upload).items())]
            sizes = map(len, parts)
            self.objects[name] = bytes(sum(sizes)) if self._drops_parts else b"".join(parts)
            return Answer(200, s3_xml.upload_completed())
        if "uploads" in query:
            upload = f"upload-{len(self.requests)}"
            self._uploads[upload] = {}
            return Answer(200, s3_xml.upload_begun(upload))
        keys = s3_xml.keys_to_delete(body)
        for key in keys:
            self.objects.pop(f"{name.rstrip('/')}/{key}", None)
        return Answer(200, s3_xml.deleted(keys))


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # mmap refuses it
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
