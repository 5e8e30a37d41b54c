"""A build that was killed goes on, and ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore
from shard_builder.build import build as build_module
from shard_builder.build import build_result
from shard_builder.build.assemble import assemble
from shard_builder.build.build import build
from shard_builder.build.chunk_plan import Splits
from shard_builder.build.output.output_folder import Output
from shard_builder.build.workers.worker import NUM_FINISHING
from shard_builder.build.workers.worker_pool import run_chunks
from tests.shard_builder.support import build_and_die, files_of, make_settings, write_raw

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "raw")


@pytest.mark.slow(reason="one build for each durable step, each killed before it and resumed")
@pytest.mark.parametrize(("split", "stride"), [(None, 1), (Splits((("val", 0.3),)), 3)])
def test_killed_before_any_durable_step(tmp_path, split, stride):
    raw = write_raw(tmp_path / "raw", num_records=11)
    reference = make_settings(raw, tmp_path / "reference", split=split)
    build(reference)
    expected = files_of(tmp_path / "reference")
    assert not any("_build" in name for name in expected)
    step = 0
    is_killed = True
    while is_killed:
        step += stride
        settings = make_settings(raw, tmp_path / f"out{step}", split=split)
        is_killed = build_and_die(settings, step)
        finished = {
            name for name in files_of(tmp_path / f"out{step}") if name.endswith("manifest.json")
        }
        for name in finished:  # a manifest is a promise, even before the build has ended
            folder = (tmp_path / f"out{step}" / name).parent
            for shard in Manifest.load(LocalStore(folder)).shards:
                assert (folder / shard.name).stat().st_size == shard.num_bytes
        assert not build_and_die(settings, 10**9)
        assert files_of(tmp_path / f"out{step}") == expected, step
    assert step > 30


def test_killed_again_and_again(tmp_path):
    raw = write_raw(tmp_path / "raw", num_records=60)
    build(make_settings(raw, tmp_path / "reference"))
    settings = make_settings(raw, tmp_path / "out")
    num_kills = 0
    while build_and_die(settings, 60):  # enough for the shards in flight
        num_kills += 1
    assert num_kills > 2
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


def test_only_what_was_in_flight_is_done_again(tmp_path, monkeypatch):
    raw = write_raw(tmp_path / "raw", num_records=60)
    settings = make_settings(raw, tmp_path / "out")
    assert build_and_die(settings, 120)
    results = (tmp_path / "out" / "_build").glob("all-*.json")
    done = {int(path.stem.removeprefix("all-")) for path in results}
    shards = {int(path.name[6:12]) for path in (tmp_path / "out").glob("shard-*.tar")}
    assert len(done) > 3
    assert len(shards - done) <= NUM_FINISHING
    built = []

    def count(chunks, *args):
        def seen():
            for chunk in chunks:
                built.append(chunk.number)
                yield chunk

        return run_chunks(seen(), *args)

    monkeypatch.setattr(build_module, "run_chunks", count)
    build(settings)
    assert built == [number for number in range(15) if number not in done]


def test_a_finished_build_is_left_alone(raw, tmp_path):
    settings = make_settings(raw, tmp_path / "out")
    first = build(settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = build(settings)
    assert first.is_new
    assert not second.is_new
    assert second.manifests == first.manifests
    assert (second.num_records, second.num_samples) == (first.num_records, first.num_samples)
    assert second.rejects == first.rejects
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_another_build_is_refused_until_overwrite(raw, tmp_path):
    settings = make_settings(raw, tmp_path / "out")
    assert build_and_die(settings, 65)
    before = files_of(tmp_path / "out")
    other = make_settings(raw, tmp_path / "out", shuffle_seed=1)
    with pytest.raises(ConfigError, match="unfinished build that differs in shuffle_seed"):
        build(other)
    (raw / "records.json").write_text((raw / "records.json").read_text().replace("Click", "Tap"))
    with pytest.raises(ConfigError, match="unfinished build that differs in inputs"):
        build(settings)
    after = files_of(tmp_path / "out")
    assert after == {name: data for name, data in before.items() if not name.endswith(".tmp")}
    build(make_settings(raw, tmp_path / "out", shuffle_seed=1, overwrite=True))
    build(make_settings(raw, tmp_path / "reference", shuffle_seed=1))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


def test_overwrite_that_was_killed(raw, tmp_path):
    build(make_settings(raw, tmp_path / "reference", shuffle_seed=2))
    expected = files_of(tmp_path / "reference")
    step = 0
    is_killed = True
    while is_killed:
        step += 5
        out = tmp_path / f"out{step}"
        build(make_settings(raw, out))
        (out / "notes.txt").write_text("not ours")
        settings = make_settings(raw, out, shuffle_seed=2, overwrite=True)
        is_killed = build_and_die(settings, step)
        assert not build_and_die(settings, 10**9)
        assert files_of(out) == expected | {"notes.txt": b"not ours"}, step
    assert step > 40


def _cut(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("shard-000001.tar", Path.unlink),
        ("shard-000001.tar", _cut),
        ("shard-000001.tar.index", Path.unlink),
        ("shard-000001.tar.idx", Path.unlink),
        ("_build/all-000001.json", Path.unlink),
        ("_build/all-000001.json", _cut),
        ("_build/all-000001.json", lambda path: path.write_text("[]")),
    ],
)
def test_what_was_lost_since_is_done_again(raw, tmp_path, name, harm):
    settings = make_settings(raw, tmp_path / "out")
    # A thread finishes shards: how far it is at a step differs from run to run.
    for step in range(65, 100, 5):
        assert build_and_die(settings, step)
        if (tmp_path / "out" / name).exists():
            break
        shutil.rmtree(tmp_path / "out")
    harm(tmp_path / "out" / name)
    build(settings)
    build(make_settings(raw, tmp_path / "reference"))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


@pytest.mark.parametrize("harm", [Path.unlink, _cut])
def test_no_manifest_names_a_shard_that_is_not_there(raw, tmp_path, monkeypatch, harm):
    settings = make_settings(raw, tmp_path / "out")

    def lose(*args):
        harm(tmp_path / "out" / "shard-000001.tar")
        return assemble(*args)

    monkeypatch.setattr(build_result, "assemble", lose)
    with pytest.raises(StoreError, match=r"shard-000001\.tar was written, but is there no more"):
        build(settings)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    assert build(settings).is_new
    build(make_settings(raw, tmp_path / "reference"))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


def test_a_result_that_is_damaged_while_the_build_runs(raw, tmp_path, monkeypatch):
    settings = make_settings(raw, tmp_path / "out")

    def damage(*args):
        _cut(tmp_path / "out" / "_build" / "all-000001.json")
        return assemble(*args)

    monkeypatch.setattr(build_result, "assemble", damage)
    with pytest.raises(StoreError, match=r"all-000001\.json is damaged: run the same command"):
        build(settings)
    monkeypatch.undo()
    assert build(settings).is_new


@pytest.mark.parametrize("split", [None, Splits((("val", 0.3),))])
def test_a_finished_set_that_lost_a_shard(raw, tmp_path, split):
    settings = make_settings(raw, tmp_path / "out", split=split)
    build(settings)
    expected = files_of(tmp_path / "out")
    lost = "val/shard-000000.tar" if split else "shard-000002.tar.index"
    (tmp_path / "out" / lost).unlink()
    with pytest.raises(ConfigError, match=f"holds this data set without {lost}: add --overwrite"):
        build(settings)
    assert build(replace(settings, overwrite=True)).is_new
    assert files_of(tmp_path / "out") == expected


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 10_000])
def test_a_damaged_note_of_what_is_being_built(raw, tmp_path, text):
    settings = make_settings(raw, tmp_path / "out")
    assert build_and_die(settings, 65)
    (tmp_path / "out" / "_build" / "build.json").write_text(text)
    with pytest.raises(ConfigError, match=r"build\.json is damaged: .* add --overwrite"):
        build(settings)
    assert build(replace(settings, overwrite=True)).is_new


@pytest.mark.parametrize("text", ["", "{", '{"version": 99}'])
def test_a_damaged_manifest_is_another_data_set(raw, tmp_path, text):
    settings = make_settings(raw, tmp_path / "out")
    build(settings)
    expected = files_of(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match="holds another data set"):
        build(settings)
    build(replace(settings, overwrite=True))
    assert files_of(tmp_path / "out") == expected


def test_two_builds_at_once(raw, tmp_path):
    settings = make_settings(raw, tmp_path / "out")
    output = Output(settings.out, ("",), settings.images_root)
    with pytest.raises(ConfigError, match="another build is writing there"):
        build(settings)
    output.close()
    assert build(settings).is_new


def _command(raw, out, *more):
    words = ["build", raw / "records.json", "--images-root", raw, "--out", out, *more]
    return [sys.executable, "-m", "tools.shard_builder", *map(str, words)]


def test_killed_with_its_workers(tmp_path):
    raw = write_raw(tmp_path / "raw", num_records=400)
    limits = ("--samples-per-shard", "5", "--workers", "2", "--quiet")
    subprocess.run(_command(raw, tmp_path / "reference", *limits), check=True)
    process = subprocess.Popen(_command(raw, tmp_path / "out", *limits), start_new_session=True)
    state = tmp_path / "out" / "_build"
    while not len(list(state.glob("all-*.json"))) > 3:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)  # the parent alone: its workers must follow by themselves
    process.wait()
    assert len(list(state.glob("all-*.json"))) < 80
    deadline = time.monotonic() + 10
    while _group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    subprocess.run(_command(raw, tmp_path / "out", *limits), check=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


def _group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_is_killed_ends_the_build(tmp_path):
    raw = write_raw(tmp_path / "raw", num_records=400)
    out = tmp_path / "out"
    limits = ("--samples-per-shard", "2", "--workers", "2", "--quiet")
    process = subprocess.Popen(
        _command(raw, out, *limits), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list((out / "_build").glob("all-*.json")):
        assert process.poll() is None
        time.sleep(0.001)
    # Workers are the fork server's children.
    everyone = psutil.Process(process.pid).children(recursive=True)
    workers = [one for one in everyone if one.ppid() != process.pid]
    assert len(workers) == 2
    workers[0].kill()
    _, message = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "ended with exit code -9" in message
    assert "run the same command again" in message
    assert not (out / "manifest.json").exists()
    subprocess.run(_command(raw, out, *limits), check=True)
    assert json.loads((out / "manifest.json").read_text())["totals"]["num_records"] == 400
