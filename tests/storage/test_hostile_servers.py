"""What a server says reaches the user, what must not reach a server stays here."""

import gzip
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.servers.object_server import client_environment
from grpo_stream.errors import ConfigError, ManifestError, StoreError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage import store as store_module
from grpo_stream.storage.retry_policy import RetryRules
from grpo_stream.storage.retrying_store import open_retrying
from grpo_stream.storage.store import open_store
from tests.storage.fault_rules import RULES

pytest.importorskip("obstore")

HASTY = RetryRules(0.01, 0.05, 4.0, stall_timeout_seconds=1.0, request_timeout_seconds=2.0)


class Scripted(ThreadingHTTPServer):
    """Answers each request with what ``answer(path, headers)`` gives: status, headers, body."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.seen = []
        self.closing = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        status, headers, body = self.server.answer(self.path, self.headers)
        self.send_response(status)
        for name, value in ({"Last-Modified": formatdate(0, usegmt=True)} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the base class's spelling

    def log_message(self, *args):
        pass


@contextmanager
def scripted(answer, context=None):
    with Scripted(answer) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def refusal(status, code, message, more=""):
    body = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code>\n<Message>{message}</Message>{more}"
    return lambda *_: (status, {}, f"{body}</Error>".encode())


@pytest.fixture
def s3(monkeypatch):
    """Opens ``s3://bucket/set`` at a scripted server."""

    def opened(server, rules=HASTY, **more):
        for name, value in (client_environment(server.url) | more).items():
            monkeypatch.setenv(name, value)
        return open_retrying("s3://bucket/set", rules)

    return opened


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            refusal(403, "RequestTimeTooSkewed", "too large"),
            r"forbidden.*RequestTimeTooSkewed.*NTP",
        ),
        (
            refusal(
                400,
                "AuthorizationHeaderMalformed",
                "the region 'us-east-1' is wrong; expecting 'eu-west-1'",
                "<Region>eu-west-1</Region>",
            ),
            r"AuthorizationHeaderMalformed: the region.*set AWS_REGION=eu-west-1",
        ),
        (refusal(404, "NoSuchBucket", "does not exist"), r"no_bucket: .*NoSuchBucket"),
        (refusal(403, "AccessDenied", "no s3:GetObject"), r"AccessDenied: no s3:GetObject"),
    ],
)
def test_the_provider_s_own_words_reach_the_user(s3, answer, words):
    with scripted(answer) as server, pytest.raises(StoreError, match=words):
        Manifest.fetch(s3(server))


def test_a_missing_bucket_is_not_a_missing_manifest(monkeypatch):
    pytest.importorskip("moto.server")
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        endpoint = f"http://127.0.0.1:{moto.get_host_and_port()[1]}"
        for name, value in client_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreError, match=r"no_bucket: s3://never-made/set.*see its name"):
            Manifest.load(open_store("s3://never-made/set"))
    finally:
        moto.stop()


def test_a_refused_certificate_is_named_and_not_tried_again(tmp_path):
    key, certificate = tmp_path / "k.pem", tmp_path / "c.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2"
    subprocess.run([*command.split(), "-subj", "/CN=localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with scripted(lambda *_: (200, {}, b""), context) as server:
        store = open_retrying(f"https://localhost:{server.server_port}/set", HASTY)
        with pytest.raises(StoreError, match=r"unreadable: .*server's certificate is refused"):
            store.read("x")
        assert store.counters.snapshot().num_retries == 0


def test_a_compressed_answer_prints_no_raw_bytes():
    packed = gzip.compress(bytes(range(256)) * 3)
    with scripted(lambda *_: (200, {"Content-Encoding": "gzip"}, packed)) as server:
        with pytest.raises(ManifestError, match="is compressed") as caught:
            Manifest.load(open_store(f"{server.url}/set"))
        assert "\\x" not in str(caught.value)
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(b"\xff\xfe" * 9000)
    assert len(str(caught.value)) < 400


def test_an_error_page_is_not_printed(s3):
    page = b"<html>\x1b[31m" + b"x" * 5000
    with scripted(lambda *_: (403, {}, page)) as server, pytest.raises(StoreError) as caught:
        s3(server).read("x")
    assert "\x1b" not in str(caught.value)
    assert "xxx" not in str(caught.value)


class Busy:
    """Refuses until a while after its first answer, and says how long that is."""

    def __init__(self, seconds, header=None):
        self.seconds, self.header = seconds, header
        self.until = None
        self.too_early = 0

    def __call__(self, path, headers):
        now = time.monotonic()
        self.until = self.until or now + self.seconds
        if now < self.until:
            wait = self.seconds if self.header is None else self.header
            return 503, {"Retry-After": str(wait)}, b"<Error><Code>SlowDown</Code></Error>"
        return 200, {}, b"data"


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_retry_after_is_honoured(s3, kind):
    with scripted(Busy(1)) as server:
        store = s3(server) if kind == "s3" else open_retrying(f"{server.url}/set", HASTY)
        assert store.read("x") == b"data"
        gets = [path for command, path, _ in server.seen if command == "GET"]
        assert len(gets) == 2
        counts = store.counters.snapshot()
        assert (counts.num_retries, counts.num_unavailable) == (1, 1)
        assert counts.waited_seconds >= 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_wait_beyond_the_deadline_ends_the_read_at_once(form):
    header = "600" if form == "seconds" else formatdate(time.time() + 600, usegmt=True)
    with scripted(Busy(600, header)) as server:
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"given up after 1 try.*asks to wait [56]\d\d s"):
            open_retrying(f"{server.url}/set", HASTY).read("x")
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("header", ["-3", "soon", "9" * 40, ""])
def test_a_senseless_wait_is_none(header):
    with scripted(Busy(0.2, header)) as server:
        assert open_retrying(f"{server.url}/set", HASTY).read("x") == b"data"


@pytest.mark.parametrize("kind", ["s3", "signed"])
def test_secrets_do_not_follow_a_redirect(s3, kind):
    with scripted(lambda *_: (200, {}, b"data")) as thief:

        def answer(path, _):
            return 307, {"Location": f"http://localhost:{thief.server_port}{path}"}, b""

        with scripted(answer) as server:
            if kind == "s3":
                store = s3(server, AWS_SESSION_TOKEN="a-token")
            else:
                store = open_retrying(f"{server.url}/set?sig=a-signature", HASTY)
            for _ in range(2):
                with pytest.raises(
                    StoreError, match=r"redirected: .*sends readers on to localhost"
                ):
                    store.read("x")
        assert thief.seen == []


def test_a_redirect_without_secrets_is_followed():
    with (
        scripted(lambda *_: (200, {}, b"data")) as other,
        scripted(lambda path, _: (302, {"Location": f"{other.url}{path}"}, b"")) as server,
    ):
        assert open_retrying(f"{server.url}/set", HASTY).read("x") == b"data"


@pytest.mark.parametrize("num_objects", [1, 3])
def test_one_whole_object_for_a_range_is_asked_again(server, num_objects):
    server.objects["bucket/set/x"] = data = bytes(range(256)) * 40
    store = open_retrying(f"{server.url}/bucket/set", RULES)
    server.faults = ["no_range"]
    ranges = [(1000 * n, 100) for n in range(num_objects)]
    found = store.read_ranges("x", ranges)
    assert [bytes(one) for one in found] == [data[a : a + n] for a, n in ranges]


def test_users_in_urls_are_refused_and_not_shown():
    for url in ("https://me:secret@host/set", "s3://key:secret@bucket/set"):
        for opened in (open_store, open_retrying):
            with pytest.raises(ConfigError, match=r"\*\*\*@.*user or password") as caught:
                opened(url)
            assert "secret" not in str(caught.value)


def test_a_signature_is_sent_and_never_shown():
    with scripted(lambda *_: (404, {}, b"")) as server:
        store = open_retrying(f"{server.url}/set?sig=secret&se=2030", HASTY)
        with pytest.raises(StoreError) as caught:
            store.read("x y")
        assert "secret" not in f"{store.url} {caught.value!r} {caught.value.__cause__!r}"
        assert store.url.endswith("/set?sig=***&se=***")
        assert {path for _, path, _ in server.seen} == {"/set/x%20y?sig=secret&se=2030"}


@pytest.mark.parametrize(
    ("folder", "path"),
    [("a b", "a%20b"), ("a%20b", "a%2520b"), ("year=2024", "year%3D2024"), ("50%", "50%25")],
)
def test_a_bucket_s_names_are_what_they_are_in_every_part(monkeypatch, folder, path):
    with scripted(lambda *_: (200, {}, b"data")) as server:
        for name, value in client_environment(server.url).items():
            monkeypatch.setenv(name, value)
        open_store(f"s3://bucket/{folder}").read(f"{folder}.x")
        assert server.seen[-1][1] == f"/bucket/{path}/{path}.x"


def test_requester_pays(monkeypatch):
    with scripted(lambda *_: (200, {}, b"data")) as server:
        for name, value in client_environment(server.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
        open_store("s3://bucket/set").read("x")
        assert server.seen[-1][2].get("x-amz-request-payer") == "requester"


class Dripping(_Handler):
    """Sends its objects, a byte now and then."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.end_headers()
        with suppress(OSError):  # the client has had enough
            while not self.server.closing.wait(0.1):
                self.wfile.write(b"x")

    do_HEAD = _Handler.do_HEAD  # noqa: N815 - the base class's spelling


def test_a_server_that_sends_next_to_nothing_ends_a_build_s_reads(monkeypatch):
    rules = RetryRules(0.01, 0.05, 2.0, stall_timeout_seconds=0.5, request_timeout_seconds=0.7)
    monkeypatch.setattr(store_module, "BUILDER_RULES", rules)
    with scripted(lambda *_: (200, {}, b"")) as server:
        server.RequestHandlerClass = Dripping
        store = open_store(f"{server.url}/set")
        try:
            for read in (store.read, lambda name: store.open_stream(name).read()):
                started = time.monotonic()
                with pytest.raises(StoreError, match="timed_out: "):
                    read("x")
                assert time.monotonic() - started < 10
        finally:
            server.closing.set()
