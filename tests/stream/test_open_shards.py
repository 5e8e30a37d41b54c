import threading

import pytest

from benchmarks.servers.object_server import ObjectServer
from grpo_stream.errors import ConfigError, ManifestError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.stream.config import CacheSettings
from grpo_stream.stream.open_shards import open_shards, parse_shards
from grpo_stream.stream.sources import ShardSource
from tests.stream.support import write_numbered_set


class TestParse:
    @pytest.mark.parametrize(
        ("words", "urls", "weights"),
        [
            (["a"], ["a"], ["1"]),
            (["a", "b"], ["a", "b"], ["1", "1"]),
            (["a=0.7", "b=0.3"], ["a", "b"], ["0.7", "0.3"]),
            (["a=2/3", "b=1/3"], ["a", "b"], ["2/3", "1/3"]),
            (["3:s3://bucket/x=1/train"], ["s3://bucket/x=1/train"], ["3"]),
            (
                ["s3://bucket/year=2024", "s3://b/x=0.5"],
                ["s3://bucket/year=2024", "s3://b/x=0.5"],
                ["1", "1"],
            ),
            (["1/3:data/a", "2/3:az://c/b=1"], ["data/a", "az://c/b=1"], ["1/3", "2/3"]),
            (["s3://bucket/date=today"], ["s3://bucket/date=today"], ["1"]),
            (["https://host/x?y=z=1e-1"], ["https://host/x?y=z=1e-1"], ["1"]),
            (["a=1/0"], ["a=1/0"], ["1"]),
        ],
    )
    def test_urls_and_weights(self, words, urls, weights):
        assert parse_shards(words) == (urls, weights)

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], "name at least one data set"),
            (["a=0.7", "b"], r"shards='b': has no weight.*0\.3:b"),
            (["a=0"], r"above 0, for example 0\.5:a"),
            (["a=-1", "b=2"], "above 0"),
        ],
    )
    def test_what_cannot_be_meant(self, words, expected):
        with pytest.raises(ConfigError, match=expected):
            parse_shards(words)

    def test_a_folder_of_that_name_is_a_folder(self, tmp_path):
        (tmp_path / "lr=0.3").mkdir()
        word = str(tmp_path / "lr=0.3")
        assert parse_shards([word]) == ([word], ["1"])


class TestOpen:
    @pytest.fixture
    def folders(self, tmp_path):
        return [str(write_numbered_set(tmp_path / f"set{n}", 5 + n)) for n in range(3)]

    def test_in_the_order_given(self, folders):
        sources = open_shards(folders)
        assert [int(source.shard_counts.sum()) for source in sources] == [5, 6, 7]

    def test_all_at_the_same_time(self, folders, monkeypatch):
        barrier = threading.Barrier(3)
        load = Manifest.load

        def load_together(store):
            barrier.wait(10)
            return load(store)

        monkeypatch.setattr(Manifest, "load", load_together)
        assert len(open_shards(folders)) == 3

    def test_settings_reach_each(self, folders, tmp_path):
        cache = CacheSettings(str(tmp_path / "cache"), 10**6)
        sources = open_shards(folders, cache=cache, max_sample_bytes=10)
        assert all(source.cache is not None for source in sources)
        for source in sources:
            with pytest.raises(Exception, match="max_sample_bytes"):
                source.read(0, 0)
            source.close()

    def test_one_that_is_missing(self, folders, tmp_path):
        with pytest.raises(ManifestError, match=r"nowhere.*no manifest"):
            open_shards([*folders, str(tmp_path / "nowhere")])

    def test_what_was_opened_beside_a_missing_one_is_closed(self, folders, tmp_path, monkeypatch):
        closed = []
        close = ShardSource.close

        def count(source):
            closed.append(source)
            close(source)

        monkeypatch.setattr(ShardSource, "close", count)
        cache = CacheSettings(str(tmp_path / "cache"), 10**6)
        with pytest.raises(ManifestError):
            open_shards([str(tmp_path / "nowhere"), *folders], cache=cache)
        assert len(closed) == 3


def test_a_url_that_ends_as_if_a_weight_were_meant():
    with ObjectServer() as empty, pytest.raises(ManifestError, match=r"write 2024:http"):
        open_shards([f"{empty.url}/set/year=2024"])
