import json
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks.__main__ import main
from benchmarks.loaders import first_batch, loader, workers
from benchmarks.loaders.bare_loop import image_of, read_tar, tars_in
from benchmarks.loaders.bench_data import make_shards
from benchmarks.loaders.timed_run import run_here
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import parse_meta
from grpo_stream.shards.tar import parse_sample
from grpo_stream.storage.store import open_store

SMALL = "--num-samples 48 --samples-per-shard 12 --image-size 64 48 --batch-size 4 --rounds 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def shards(folder):
    return str(make_shards(folder, 48, 12, (64, 48)))


class InThisProcess:
    """As ``turns.Contestant``, but for the standing still."""

    def __init__(self, job, environment=None):
        with patch.dict("os.environ", environment or {}):
            self.turns_left = job.num_turns
            self.turns = run_here(job)
            next(self.turns)

    def take_turn(self):
        self.turns_left -= 1
        return next(self.turns)

    def close(self):
        list(self.turns)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def here(monkeypatch):
    """Jobs run in this process: a new one of Python, with torch, is seconds."""

    def run_apart(job, environment=None):
        with patch.dict("os.environ", environment or {}):
            *_, measured = run_here(job)
            return measured

    for module in (first_batch, workers):
        monkeypatch.setattr(module, "run_apart", run_apart)
    monkeypatch.setattr(loader, "Contestant", InThisProcess)


def figures_of(capsys, words, folder):
    assert main([*words.split(), *SMALL.split(), "--json", "--folder", str(folder)]) == 0
    return json.loads(capsys.readouterr().out)


def test_shards_are_made_once(folder, shards):
    manifest = Path(shards) / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert str(make_shards(folder, 48, 12, (64, 48))) == shards
    assert manifest.stat().st_mtime_ns == before


def test_the_bare_loop_reads_what_the_format_holds(shards):
    store = open_store(shards)
    manifest = Manifest.load(store)
    assert [path.name for path in tars_in(shards)] == [info.name for info in manifest.shards]
    for info, path in zip(manifest.shards, tars_in(shards), strict=True):
        index = ShardIndex.load(store, info)
        found = list(read_tar(path))
        assert len(found) == info.num_samples
        for number, (key, members) in enumerate(found):
            entry = index[number]
            data = store.read_range(info.name, entry.offset, entry.num_bytes)
            sample = parse_sample(data, info.name, entry)
            assert (sample.key, sample.image) == (key, image_of(members))
            assert sample.meta == parse_meta(members["json"], key)


def test_loader_beside_the_bare_loop(capsys, folder):
    figures = figures_of(capsys, "loader", folder)
    assert list(figures["samples"]) == ["bare", "threads"]
    assert all(row["per_cpu_second"] > 0 for row in figures["samples"].values())
    bare, threads = (figures["samples"][name]["per_second"] for name in ("bare", "threads"))
    assert figures["share of bare"]["threads"]["per_second"] == pytest.approx(threads / bare, 0.01)
    assert figures["settings"]["num_samples"] == 48


def test_undecoded(capsys, folder, here):
    figures = figures_of(capsys, "loader --raw --only threads --max-pixels 3136", folder)
    assert list(figures) == ["samples", "settings"]
    assert figures["samples"]["threads"]["per_second"] > 0


def test_contestants_are_opened_anew_within_an_epoch(capsys, folder, here):
    words = f"loader --only threads {SMALL} --rounds 5 --timed-samples 12 --json --folder {folder}"
    with patch.object(loader, "Contestant", wraps=InThisProcess) as opened:
        assert main(words.split()) == 0
    num_turns = [call.args[0].num_turns for call in opened.call_args_list]
    assert num_turns == [2, 2, 1]  # a window of 33 samples
    assert json.loads(capsys.readouterr().out)["samples"]["threads"]["per_second"] > 0


def test_loader_from_a_bucket(capsys, folder, here):
    pytest.importorskip("obstore")
    words = (
        "loader --store s3 --delay-ms 5 --only threads --fetch-ahead-mb 0.001 --timed-samples 24"
    )
    figures = figures_of(capsys, words, folder)
    assert list(figures["samples"]) == ["threads", "threads s3"]
    assert figures["server"]["threads s3"]["requests"] >= 1


def test_first_batch_resumes_exactly(capsys, folder, here):
    pytest.importorskip("obstore")
    row = figures_of(capsys, "first_batch --delay-ms 5", folder)["seconds"]
    assert [row[name]["exact"] for name in ("threads", "threads s3")] == ["yes", "yes"]
    assert row["threads"]["cold_answers"] is None


def test_bytes_of_an_epoch(capsys, folder):
    pytest.importorskip("obstore")
    words = "bytes --ranks 1 2 --delay-ms 0 --step-ms 0"
    rows = figures_of(capsys, words, folder)["bytes"]
    assert list(rows) == ["1 ranks, ranges", "1 ranks, cache", "2 ranks, ranges", "2 ranks, cache"]
    assert all(row["read"] >= row["needed"] > 0 for row in rows.values())


def test_threads_and_processes_beside_a_step(capsys, folder, here):
    words = "workers --step-ms 2 --matrix-side 8 --num-batches 2"
    (rows,) = [v for name, v in figures_of(capsys, words, folder).items() if name != "settings"]
    assert list(rows) == ["threads", "processes"]
    assert all(row["step_slowdown"] > 0 for row in rows.values())


def test_plan(capsys):
    words = "plan --num-shards 100 --samples-per-shard 70 --ranks 10 --json"
    assert main(words.split()) == 0
    rows = json.loads(capsys.readouterr().out)["plan"]
    assert rows["locate"]["us_per_sample"] > 0
    assert all(row["peak_mb"] < 10 for row in rows.values())


def test_no_contestant_is_refused(capsys, folder):
    assert main(["loader", *SMALL.split(), "--only", "nobody", "--folder", str(folder)]) == 2
    assert "--only='nobody'" in capsys.readouterr().err.replace("['nobody']", "'nobody'")
