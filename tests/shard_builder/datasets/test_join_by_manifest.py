"""Data sets joined by a manifest: read as one, while their shards stay where they lie."""

import contextlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_stream.errors import ConfigError, ManifestError, ShardFormatError, StoreError
from grpo_stream.shards.linked_sets import open_set
from grpo_stream.shards.manifest import MANIFEST_NAME, Manifest
from grpo_stream.storage.store import LocalStore, open_store
from grpo_stream.stream.config import CacheSettings
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from shard_builder.build.output.output_lock import FolderLock
from shard_builder.cli import main
from shard_builder.datasets.linking.join_by_manifest import join_by_manifest
from shard_builder.datasets.rewrite import head, merge
from shard_builder.datasets.verify import VerifyError, verify
from tests.shard_builder.support import files_of
from tests.shards.support import make_older, make_sample, write_set
from tests.stream.support import keys_of as stream_keys
from tests.stream.support import make_config


@pytest.fixture
def sets(tmp_path):
    """Two data sets, and the folder of a third."""
    for name, first, count in (("a", 0, 13), ("b", 50, 10)):
        samples = [make_sample(f"{number:06d}") for number in range(first, first + count)]
        write_set(tmp_path / name, samples, per_shard=3)
    return [str(tmp_path / name) for name in ("a", "b")], str(tmp_path / "joined")


def keys_of(folder):
    source = ShardSource(str(folder))
    return [key for shard in range(len(source.manifest.shards)) for key in source.keys(shard)]


def test_nothing_is_copied_and_all_commands_read_it(sets, tmp_path, capsys):
    urls, out = sets
    before = files_of(tmp_path)
    told = []
    manifest = join_by_manifest(urls, out, on_progress=lambda number, _: told.append(number))
    assert sum(told) == manifest.num_samples == 23
    assert files_of(tmp_path).keys() - before.keys() == {"joined/manifest.json"}
    assert manifest.sources == ("../a", "../b")
    assert manifest.shards[0].name == "000/shard-000000.tar"
    assert Manifest.load(LocalStore(out)) == manifest
    assert keys_of(out) == keys_of(urls[0]) + keys_of(urls[1])
    assert verify(*open_set(out)).num_samples == 23
    copied = merge(urls, str(tmp_path / "copied"))
    assert manifest.totals.items() <= copied.totals.items()
    for words in (["stats"], ["verify", "--part", "1/1"], ["show", "--out", str(tmp_path / "p")]):
        assert main([words[0], out, *words[1:], "--quiet"]) == 0
    assert "23 in 9 shards" in capsys.readouterr().out
    assert head(out, str(tmp_path / "few"), 15).num_samples == 15
    assert keys_of(tmp_path / "few") == keys_of(out)[:15]
    assert join_by_manifest(urls, out) == manifest  # once more changes nothing


def test_a_joined_set_may_be_joined(sets, tmp_path):
    urls, out = sets
    join_by_manifest(urls, out)
    write_set(tmp_path / "deep/c", [make_sample("c")])
    both = join_by_manifest([str(tmp_path / "deep/c"), out], str(tmp_path / "deep/all"))
    assert both.sources == ("../c", "../../a", "../../b")
    assert keys_of(tmp_path / "deep/all") == ["c", *keys_of(out)]


def open_loader(folder, cache=None, state=None):
    source = ShardSource(str(folder), cache=cache)
    loader = PromptLoader(PromptStream(source, make_config(num_lanes=4), World(0, 1)), stream_keys)
    if state is not None:
        loader.load_state_dict(state)
    return loader


@pytest.mark.parametrize("num_done", [0, 1, 3, 5])
def test_a_run_goes_on_exactly_though_all_has_moved(sets, tmp_path, num_done):
    urls, out = sets
    join_by_manifest(urls, out)
    with open_loader(out) as loader:
        whole = list(loader) + list(loader)
    with open_loader(out) as loader:
        batches = iter(loader)
        done = [next(batches) for _ in range(num_done)]
        state = json.loads(json.dumps(loader.state_dict()))
    moved = tmp_path / "elsewhere/deeper"
    moved.mkdir(parents=True)
    for folder in (*urls, out):
        shutil.move(folder, moved / Path(folder).name)
    cache = CacheSettings(str(tmp_path / "cache"), 10**6)
    with open_loader(moved / "joined", cache, state) as loader:
        rest = list(loader)
        if num_done < 5:  # else the cursor stands at the next epoch already
            rest += list(loader)
    assert done + rest == whole


def test_decoding_processes_read_it(sets):
    urls, out = sets
    join_by_manifest(urls, out)
    source = pickle.loads(pickle.dumps(open_set(out)[0]))  # noqa: S301 - its own
    assert source.read("001/shard-000000.tar") == Path(urls[1], "shard-000000.tar").read_bytes()


def test_one_set_alone_that_moved_is_named(sets, tmp_path, capsys):
    urls, out = sets
    join_by_manifest(urls, out)
    shutil.move(urls[1], tmp_path / "gone")
    for open_it in (open_set, ShardSource):
        with pytest.raises(ManifestError, match=r"its shards lie in \.\./b, and no folder .*/b is"):
            open_it(out)
    assert main(["verify", out, "--quiet"]) == 1
    assert "bring it back" in capsys.readouterr().err


def test_a_shard_that_was_changed_since_is_noticed(sets):
    urls, out = sets
    join_by_manifest(urls, out)
    tar = Path(urls[1], "shard-000000.tar")
    sound = tar.read_bytes()
    tar.write_bytes(sound[:-512])
    with pytest.raises(VerifyError, match=r"001/shard-000000\.tar"):
        verify(*open_set(out))
    tar.unlink()
    with pytest.raises(StoreError, match=r"not_found: .*/b: shard-000000.tar"):
        verify(*open_set(out))
    write_set(Path(urls[1]), [make_sample(f"{number:06d}x") for number in range(10)], per_shard=3)
    with pytest.raises(ShardFormatError, match="foreign_index"):
        keys_of(out)


def refused(urls, out, words, **settings):
    before = files_of(Path(out)) if Path(out).exists() else None
    with pytest.raises(ConfigError, match=words):
        join_by_manifest(urls, out, **settings)
    assert (files_of(Path(out)) if Path(out).exists() else None) == before


def test_sets_that_do_not_go_together(sets, tmp_path):
    urls, out = sets
    a, b = urls
    refused([a], out, "takes two data sets or more")
    refused([a, a], out, r"is joined twice \(shard-000000\.tar among its shards\): name each")
    shutil.copytree(a, tmp_path / "c")
    words = r"has key '000000' in .*/c: shard-000000\.tar, which .*/a: shard-000000\.tar has too"
    refused([a, b, str(tmp_path / "c")], out, words)
    make_older(tmp_path / "c")
    refused([b, str(tmp_path / "c")], out, "indexes of an older version: run shard-builder index")
    for settings, words in (
        ({"schema_version": 99}, "has samples of schema 99, this program reads 1 to"),
        ({"made_by": "index"}, "does not say in which frame its boxes are"),
    ):
        store = LocalStore(a)
        replace(Manifest.load(store), settings=settings).save(store)
        refused(urls, out, words)


def test_a_place_that_cannot_be(sets, tmp_path):
    urls, out = sets
    refused(urls, urls[0], "holds shards of its own")
    refused(urls, "https://example.org/x", "web servers take no uploads")
    refused(urls, "s3://bucket/x", "would name a folder of this machine")
    join_by_manifest(urls, out)
    refused(urls[::-1], out, "holds another data set: choose another folder or add --overwrite")
    assert join_by_manifest(urls[::-1], out, overwrite=True).sources == ("../b", "../a")
    write_set(tmp_path / "c", [make_sample("c")])
    lock = FolderLock(Path(out))
    with pytest.raises(ConfigError, match="another build is writing there"):
        join_by_manifest([*urls, str(tmp_path / "c")], out, overwrite=True)
    lock.close()
    words = ["merge", "--by-manifest", *urls, "--out", out, "--prefix", "a-", "--quiet"]
    assert main(words) == 2


@pytest.mark.parametrize("sources", [7, [""], [3], "../a"])
def test_sources_that_are_no_urls(sets, sources):
    urls, out = sets
    join_by_manifest(urls, out)
    path = Path(out, MANIFEST_NAME)
    path.write_text(json.dumps({**json.loads(path.read_text()), "sources": sources}))
    with pytest.raises(ManifestError, match="sources"):
        Manifest.load(LocalStore(out))


def test_in_buckets(sets, bucket):
    pytest.importorskip("obstore")
    urls, _ = sets
    far = [f"{bucket}/a", f"{bucket}/b"]
    for here, there in zip(urls, far, strict=True):
        for name, data in files_of(Path(here)).items():
            open_store(there).write(name, data)
    out = f"{bucket}/joined"
    manifest = join_by_manifest(far, out)
    assert manifest.sources == tuple(far)
    assert open_store(out).walk() == [MANIFEST_NAME]
    assert verify(*open_set(out)).num_samples == 23
    with contextlib.closing(ShardSource(out)) as source:
        assert source.is_remote
        assert source.read(5, 0).key == "000050"
        assert source.metrics()["num_requests"] > 0
    assert not open_store(out).write_new(MANIFEST_NAME, b"")  # two cannot both write it
    store = open_store(out)
    near = replace(manifest, sources=("../a", "../b"))
    store.write(MANIFEST_NAME, near.to_json())
    assert keys_of(out) == keys_of(urls[0]) + keys_of(urls[1])
