"""A signed URL is a key: none of a small run's outputs may hold it."""

import json
import logging
import traceback

import pytest

from benchmarks.servers.object_server import ObjectServer
from grpo_stream.errors import GrpoStreamError
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.open_shards import open_shards
from grpo_stream.stream.prompt_stream import PromptStream
from shard_builder.cli import main
from tests.shard_builder.support import files_of, write_raw
from tests.stream.support import keys_of, make_config

SECRET = "s3cr3t"  # noqa: S105 - what is looked for
QUERY = f"?sig={SECRET}&X-Amz-Security-Token={SECRET}"


@pytest.fixture
def served(tmp_path):
    """The raw set on a web server, and where its commands may write."""
    raw = write_raw(tmp_path / "raw", 40)
    (tmp_path / "out").mkdir()
    with ObjectServer() as server:
        server.add_folder(raw, "data/raw")
        yield server, tmp_path / "out"


def test_no_output_of_a_run_holds_a_secret(served, capfd, caplog):
    server, folder = served
    caplog.set_level(logging.DEBUG)
    raw, out = f"{server.url}/data/raw", str(folder / "set")
    words = ["build", f"{raw}/records.json{QUERY}", "--images-root", f"{raw}{QUERY}", "--out", out]
    assert main([*words, "--progress", "json"]) == 0
    server.add_folder(folder / "set", "data/set")
    signed = f"{server.url}/data/set{QUERY}"
    for words in (
        ["verify", signed],
        ["show", signed, "--out", str(folder / "page")],
        ["stats", signed],
        ["head", signed, "--num-samples", "3", "--out", str(folder / "head")],
        ["verify", f"{server.url}/nothing{QUERY}"],
        ["head", signed, "--num-samples", "0", "--out", str(folder / "x")],
        ["verify", f"https://me:{SECRET}@127.0.0.1/set"],
        [
            "build",
            f"https://me:{SECRET}@h/r.json",
            "--images-root",
            ".",
            "--out",
            str(folder / "y"),
        ],
    ):
        main(words)
    texts = [*capfd.readouterr(), caplog.text]
    texts += [data.decode(errors="replace") for data in files_of(folder).values()]
    assert "verify" in str(texts)
    assert "sig=***" in texts[1]
    assert not [text for text in texts if SECRET in text]


def test_no_error_of_a_stream_holds_a_secret(served, caplog):
    server, folder = served
    main(["build", f"{server.url}/data/raw/records.json", "--images-root", f"{server.url}/data/raw",
          "--out", str(folder / "set"), "--quiet", "--samples-per-shard", "4"])  # fmt: skip
    server.add_folder(folder / "set", "data/set")
    signed = f"{server.url}/data/set{QUERY}"
    (source,) = open_shards([signed])
    stream = PromptStream(source, make_config(max_bad_samples=2))
    server.flips = {".tar": [560, 10**6]}
    texts = []
    with PromptLoader(stream, keys_of) as loader:
        try:
            for _ in range(3):
                list(loader)
        except GrpoStreamError:
            texts.append(traceback.format_exc())
        server.flips = {}
        server.always = {".index": "denied", ".tar": "denied"}
        try:
            list(PromptLoader(PromptStream(open_shards([signed])[0], make_config()), keys_of))
        except GrpoStreamError:
            texts.append(traceback.format_exc())
    texts += [caplog.text, json.dumps(stream.counters.quarantine), source.describe(0, 0)]
    assert len(texts) == 5
    assert not [text for text in texts if SECRET in text]
