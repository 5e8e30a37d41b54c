import io
import os
import tarfile
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.sample_runs import iter_runs
from grpo_stream.shards.tar import ShardWriter, iter_samples, parse_sample, read_sample
from grpo_stream.shards.tar_headers import iter_members
from grpo_stream.storage.store import LocalStore, open_store
from tests.shards.support import image_bytes, make_multi_sample, make_sample, tar_of, write_shard

SAMPLES = [make_sample(f"{i:06d}", f"Click {i}", (8 + i, 6)) for i in range(5)]
META = (
    b'{"prompt":"p","solution":[1,2],"width":8,"height":6,"original_width":8,"original_height":6}'
)


@pytest.fixture
def shard(tmp_path):
    info = write_shard(tmp_path / "s.tar", SAMPLES)
    return tmp_path / "s.tar", info


def read_all(data):
    return list(iter_samples(io.BytesIO(data), "s.tar"))


def test_whole_shard_round_trip(shard):
    assert read_all(shard[0].read_bytes()) == SAMPLES


def test_every_sample_by_its_range(shard):
    path, info = shard
    store = LocalStore(path.parent)
    index = ShardIndex.load(store, info)
    assert [read_sample(store, info.name, index[i]) for i in range(5)] == SAMPLES
    assert [index[i].size for i in range(5)] == [sample.size for sample in SAMPLES]


def test_tarfile_reads_it_and_sees_nothing_of_the_machine(shard):
    with tarfile.open(shard[0]) as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:4]] == [
        "000000.png", "000000.json", "000001.png", "000001.json",
    ]  # fmt: skip
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }


def test_equal_samples_give_equal_files(tmp_path):
    infos = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        infos.append(write_shard(tmp_path / name / "s.tar", SAMPLES))
    assert infos[0] == infos[1]
    for name in ("s.tar", "s.tar.index", "s.tar.idx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_error_leaves_nothing(tmp_path):
    def write_and_fail():
        with ShardWriter(tmp_path / "s.tar") as writer:
            writer.add(SAMPLES[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_nothing_under_the_final_name_before_close(tmp_path):
    writer = ShardWriter(tmp_path / "s.tar")
    writer.add(SAMPLES[0])
    assert not (tmp_path / "s.tar").exists()
    info = writer.close()
    assert isinstance(info, ShardInfo)
    assert info is writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {"s.tar", "s.tar.index", "s.tar.idx"}
    assert info.num_bytes == (tmp_path / "s.tar").stat().st_size


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"key": "000000"}, "duplicate_key"),
        ({"key": "a.b"}, "bad_key"),
        ({"image_suffix": "gif"}, "bad_suffix"),
        ({"meta": {"prompt": "p"}}, "bad_meta"),
        ({"more_images": (("png", b"x"),)}, "bad_meta"),
        ({"meta": make_multi_sample().meta}, "bad_meta"),
        ({"meta": make_sample(note=float("nan")).meta}, "bad_meta"),
    ],
)
def test_writer_refuses(tmp_path, change, cause):
    with ShardWriter(tmp_path / "s.tar") as writer:
        writer.add(SAMPLES[0])
        with pytest.raises(ShardFormatError, match=cause):
            writer.add(SAMPLES[1]._replace(**change))
        assert writer.num_samples == 1


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_tars(fmt):
    key = f"{'folder' * 10}/{'long' * 15}"  # past the 100 bytes of a plain header's name
    data = tar_of([(f"{key}.JPEG", b"image"), (f"{key}.txt", b"aside"), (f"{key}.json", META)], fmt)
    (sample,) = read_all(data)
    assert (sample.key, sample.image_suffix, sample.image) == (key, "jpg", b"image")


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([("a.png", b"x")], "missing_member"),
        ([("a.json", META)], "missing_member"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.json", META)], "duplicate_member"),
        ([("a.png", b"x"), ("a.json", b"{}")], "bad_meta"),
        ([("a.png", b"x"), ("a.json", b"x")], "bad_json"),
        ([("a.png", b"x"), ("b.json", META)], "missing_member"),
        (
            [(f"{key}.{suffix}", META) for key in "aba" for suffix in ("png", "json")],
            "duplicate_key",
        ),
    ],
)
def test_faulty_members_are_named(members, cause):
    with pytest.raises(ShardFormatError, match=rf"{cause}: s\.tar.*key='a'"):
        read_all(tar_of(members))


def test_links_are_refused():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ShardFormatError, match=r"bad_member: s\.tar at byte 0"):
        read_all(buffer.getvalue())


def test_every_cut_of_a_shard_is_noticed(shard):
    data = shard[0].read_bytes()
    for end in [0, 1, 511, 512, 600, len(data) // 2, len(data) - 1024, len(data) - 513]:
        with pytest.raises(ShardFormatError):
            read_all(data[:end])


def test_every_flipped_byte_of_a_sample_is_noticed(shard):
    path, info = shard
    data = path.read_bytes()
    entry = ShardIndex.load(LocalStore(path.parent), info)[1]
    run = data[entry.offset : entry.offset + entry.num_bytes]
    sample = parse_sample(run, "s.tar", entry)
    for position in range(0, len(run), 7):
        damaged = bytearray(run)
        damaged[position] ^= 0x55
        with suppress(ShardFormatError):  # bytes of padding mean nothing
            assert parse_sample(bytes(damaged), "s.tar", entry) == sample


def test_errors_give_the_offset_in_the_shard(shard):
    path, info = shard
    entry = ShardIndex.load(LocalStore(path.parent), info)[2]
    with pytest.raises(ShardFormatError, match=f"bad_header: s.tar at byte {entry.offset}"):
        parse_sample(b"x" * 512, "s.tar", entry)
    other = make_sample("000002", "Click 2", (11, 6))
    run = tar_of([("000002.png", other.image), ("000002.json", META)])
    with pytest.raises(ShardFormatError, match=r"checksum: s\.tar .*key='000002'"):
        parse_sample(run, "s.tar", entry)


def test_a_range_must_hold_one_sample(shard):
    data = shard[0].read_bytes()
    for run in (b"", data):
        with pytest.raises(ShardFormatError, match="num_samples"):
            parse_sample(run, "s.tar")


def test_a_huge_size_in_a_header_is_not_believed():
    header = tarfile.TarInfo("a.png")
    header.size = 2**60
    with pytest.raises(ShardFormatError, match="bad_header"):
        read_all(header.tobuf(tarfile.GNU_FORMAT))


@settings(max_examples=200)
@given(st.binary(max_size=1500))
def test_any_bytes_give_samples_or_a_named_error(data):
    header = tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT)
    for start in (b"", header):
        with pytest.raises(ShardFormatError):
            read_all(start + data)


def test_images_are_stored_as_they_are(tmp_path):
    jpeg = image_bytes(kind="JPEG")
    sample = make_sample()._replace(image=jpeg, image_suffix="jpg")
    write_shard(tmp_path / "s.tar", [sample])
    assert jpeg in (tmp_path / "s.tar").read_bytes()


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("key", ["000", "a/000", "a.b/000", "0" * 95, "\udcff"])
@pytest.mark.parametrize("suffix", ["png", "jpeg", "PNG"])
def test_with_an_index_the_same_is_read(fmt, key, suffix):
    data = tar_of([(f"{key}.{suffix}", make_sample().image), (f"{key}.json", META)], fmt)
    (run,) = iter_runs(iter_members(io.BytesIO(data), "s.tar", is_whole=True), "s.tar")
    entry = run.index_entry()
    data = data[entry.offset : entry.offset + entry.num_bytes]
    assert parse_sample(data, "s.tar", entry) == run.sample
    assert parse_sample(memoryview(data), "s.tar", entry) == run.sample


def test_a_known_checksum_is_taken(tmp_path):
    with ShardWriter(tmp_path / "s.tar") as writer:
        writer.add(SAMPLES[0], image_crc32=7)
        writer.add(SAMPLES[1])
    index = ShardIndex.load(LocalStore(tmp_path), writer.close())
    assert index[0].parts[0].crc32 == 7
    assert index[1].parts[0].crc32 == zlib.crc32(SAMPLES[1].image)


def test_writes_that_the_kernel_cuts_short_are_finished(tmp_path, monkeypatch):
    whole = write_shard(tmp_path / "a.tar", SAMPLES)
    write, writev = os.write, os.writev
    monkeypatch.setattr(os, "writev", lambda fd, chunks: writev(fd, [b"".join(chunks)[:700]]))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    cut = write_shard(tmp_path / "b.tar", SAMPLES)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert whole.sha256 == cut.sha256


def test_a_closed_writer_takes_nothing(tmp_path):
    writer = ShardWriter(tmp_path / "s.tar")
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.add(SAMPLES[0])


def test_runs_of_another_shard_are_copied_as_they_are(shard, tmp_path):
    path, info = shard
    data, index = path.read_bytes(), ShardIndex.load(LocalStore(tmp_path), info)
    with ShardWriter(tmp_path / "copy.tar") as writer:
        for sample in (3, 4, 0):
            offset, num_bytes, _ = index[sample]
            writer.add_run(data[offset : offset + num_bytes], index[sample])
    write_shard(tmp_path / "again.tar", [SAMPLES[sample] for sample in (3, 4, 0)])
    for end in ("", ".index", ".idx"):
        copy, again = tmp_path / f"copy.tar{end}", tmp_path / f"again.tar{end}"
        assert copy.read_bytes() == again.read_bytes()


def test_a_shard_for_a_bucket_is_moved_there_with_its_indexes(server, tmp_path):
    write_shard(tmp_path / "s.tar", SAMPLES)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "spool").mkdir()
    writer = ShardWriter(tmp_path / "spool/s.tar")
    for sample in SAMPLES:
        writer.add(sample)
    info, tags = writer.close_into(open_store("s3://bucket/set"))
    assert info == writer.close()
    assert set(tags) == set(files)
    assert server.objects == {f"bucket/set/{name}": data for name, data in files.items()}
    puts = [one.name for one in server.requests if one.method == "PUT"]
    assert puts == [f"bucket/set/{name}" for name in ("s.tar", "s.tar.index", "s.tar.idx")]
    assert list((tmp_path / "spool").iterdir()) == []
