import gzip
import io
import sys

import pytest
import zstandard

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.records.formats import byte_chunks
from grpo_stream.records.formats.byte_chunks import ChunkReader, read_chunks, unpack

TEXT = b'{"prompt": "Click"}\n' * 5000


def zstd(data):
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def pieces(data, num_bytes):
    return iter([data[i : i + num_bytes] for i in range(0, len(data), num_bytes)])


@pytest.mark.parametrize("num_bytes", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize(
    "packed",
    [
        TEXT,
        gzip.compress(TEXT),
        gzip.compress(TEXT[:300]) + gzip.compress(TEXT[300:]) + bytes(512),
        zstd(TEXT),
        zstd(TEXT[:300]) + zstd(TEXT[300:]),
    ],
    ids=["plain", "gzip", "gzip members", "zstd", "zstd frames"],
)
def test_packed_or_not(packed, num_bytes):
    assert b"".join(unpack(pieces(packed, num_bytes), "a")) == TEXT


def test_what_is_unpacked_comes_in_pieces():
    zeros = bytes(50 << 20)
    for packed in (gzip.compress(zeros), zstd(zeros)):
        sizes = [len(piece) for piece in unpack(iter([packed]), "a")]
        assert sum(sizes) == len(zeros)
        assert max(sizes) <= 16 << 20


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_damage(pack):
    packed = pack(TEXT)
    broken = packed[:20] + bytes([packed[20] ^ 255]) + packed[21:]
    for data in (packed[:-1], packed[: len(packed) // 2], packed + b"more", broken):
        with pytest.raises(RecordError, match="input_unreadable: a: "):
            list(unpack(iter([data]), "a"))


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_a_name_that_says_packed_is_believed(name):
    with pytest.raises(RecordError, match="input_unreadable"):
        list(unpack(iter([b"plain text"]), name))
    assert list(unpack(iter([]), name)) == []


def test_zstd_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigError, match=r"grpo_stream\[zstd\]"):
        list(unpack(iter([zstd(TEXT)]), "a"))


@pytest.mark.parametrize("query", ["", "sig=1"])
def test_object_storage_is_an_extra(monkeypatch, query):
    for name in ("obstore", "obstore.store"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"grpo_stream\[cloud\]"):
        list(read_chunks("https://host/a.json", query))


def test_on_bytes_gets_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(byte_chunks, "_READ_BYTES", 100)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(TEXT))
    seen: list[bytes] = []
    assert b"".join(unpack(read_chunks(str(path), on_bytes=seen.append), str(path))) == TEXT
    assert b"".join(seen) == path.read_bytes()
    assert b"".join(read_chunks(path.as_uri())) == path.read_bytes()


@pytest.mark.parametrize("name", ["missing", ".", "nul\0"])
def test_files_that_cannot_be_read(tmp_path, name):
    with pytest.raises(RecordError, match="input_unreadable"):
        list(read_chunks(str(tmp_path / name)))


@pytest.mark.parametrize("num_bytes", [1, 3, 100])
def test_a_reader_gives_exactly_what_is_asked(num_bytes):
    data = bytes(range(50))
    reader, file = ChunkReader(pieces(data, num_bytes)), io.BytesIO(data)
    for asked in (0, 1, 10, 7, 30, 5, 5):
        assert reader.read(asked) == file.read(asked)
