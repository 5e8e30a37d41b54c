import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.records.formats.find_files import find_files

NAMES = ("b.json", "a.json", "sub/c.json", "sub/deep/d.json", "odd[1].json", "x.jsonl")


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    return tmp_path


PATTERNS = [
    ("*.json", ["a.json", "b.json", "odd[1].json"]),
    ("?.json", ["a.json", "b.json"]),
    ("[ax].json*", ["a.json", "x.jsonl"]),
    ("[!a].json", ["b.json"]),
    ("**/d.json", ["sub/deep/d.json"]),
    ("sub/*.json", ["sub/c.json"]),
    ("sub/**/*.json", ["sub/c.json", "sub/deep/d.json"]),
]


@pytest.mark.parametrize(("pattern", "found"), [*PATTERNS, ("odd[1].json", ["odd[1].json"])])
def test_local(folder, pattern, found):
    assert find_files(f"{folder}/{pattern}") == [(f"{folder}/{name}", "") for name in found]


@pytest.mark.parametrize("word", ["none*.json", "none.json", "sub", "", "\0"])
def test_nothing_there(folder, word, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="INPUT"):
        find_files(word)


@pytest.fixture
def bucket(server):
    server.objects |= {f"bucket/data/{name}": b"[]" for name in NAMES}
    return "s3://bucket/data"


@pytest.mark.parametrize(("pattern", "found"), PATTERNS)
def test_in_a_bucket(bucket, pattern, found):
    assert find_files(f"{bucket}/{pattern}") == [(f"{bucket}/{name}", "") for name in found]


def test_nothing_in_the_bucket(bucket):
    with pytest.raises(ConfigError, match="matches none of 6 objects"):
        find_files(f"{bucket}/*.parquet")
    with pytest.raises(ConfigError, match="must name a bucket"):
        find_files("s3://*/a.json")


@pytest.mark.parametrize("word", ["", "ftp://host/a.json"])
def test_words_that_name_nothing(word):
    with pytest.raises(ConfigError, match=f"INPUT='{word}': must .* for example"):
        find_files(word)


def test_the_query_of_a_signed_url_is_no_part_of_the_name():
    assert find_files("https://host/a%20b.json?sig=x?y") == [("https://host/a%20b.json", "sig=x?y")]
    with pytest.raises(ConfigError, match="web servers list nothing"):
        find_files("https://host/*.json?sig=secret")
