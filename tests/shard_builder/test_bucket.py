"""Everything in a bucket: inputs, images, output; against a real S3 server on loopback."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import open_store
from shard_builder.build.build import build
from shard_builder.datasets.verify import verify
from tests.shard_builder.support import files_of, make_settings, write_raw

pytest.importorskip("obstore")
pytest.importorskip("moto.server")


def objects_of(url):
    store = open_store(url)
    return {name: store.read(name) for name in store.walk()}


def test_from_bucket_to_bucket(bucket, tmp_path):
    raw = write_raw(tmp_path / "raw")
    store = open_store(bucket)
    for name, data in files_of(raw).items():
        store.write(f"raw/{name}", data)
    here = build(make_settings(raw, tmp_path / "here"))
    settings = replace(
        make_settings(raw, f"{bucket}/set"),
        inputs=(f"{bucket}/raw/*.json",),
        images_root=f"{bucket}/raw",
    )
    there = build(settings)
    assert here.manifest is not None
    assert there.manifest is not None
    assert there.manifest.shards == here.manifest.shards
    manifest = Manifest.load(open_store(f"{bucket}/set"))
    assert manifest == there.manifest
    assert verify(open_store(f"{bucket}/set"), manifest).num_samples == here.num_samples
    mine, theirs = files_of(tmp_path / "here"), objects_of(f"{bucket}/set")
    assert set(mine) == set(theirs)
    for name in mine:
        if not name.endswith(("json", "jsonl")):
            assert mine[name] == theirs[name], name
    assert not build(settings).is_new


def test_killed_upload_goes_on(bucket, tmp_path):
    raw = write_raw(tmp_path / "raw", num_records=200)
    build(make_settings(raw, tmp_path / "here"))
    words = ["build", raw / "records.json", "--images-root", raw, "--out", f"{bucket}/set"]
    words += ["--samples-per-shard", "4", "--workers", "1", "--quiet"]
    command = [sys.executable, "-m", "tools.shard_builder", *map(str, words)]
    process = subprocess.Popen(command, env=os.environ)
    store = open_store(f"{bucket}/set")
    while len(store.walk("_build/")) < 4:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    num_done = len(store.walk("_build/")) - 1
    assert num_done < 50
    assert not store.exists("manifest.json")
    subprocess.run(command, check=True, env=os.environ)
    assert objects_of(f"{bucket}/set") == files_of(tmp_path / "here")
