import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.tar_headers import BLOCK, END, iter_members, make_header, padding

NAMES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=100
).filter(lambda name: len(name.encode()) <= 100)


def info(name, num_bytes=0, **changes):
    made = tarfile.TarInfo(name)
    made.size = num_bytes
    made.mode = 0o644
    for field, value in changes.items():
        setattr(made, field, value)
    return made


@given(NAMES, st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(name, num_bytes):
    assert make_header(name, num_bytes) == info(name, num_bytes).tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "num_bytes"), [("a" * 101, 1), ("é" * 51, 1), ("a", 8**11)])
def test_what_does_not_fit_is_refused(name, num_bytes):
    with pytest.raises(ValueError, match="does not fit"):
        make_header(name, num_bytes)


def test_paddings():
    assert [len(padding(n)) for n in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]


def members(data):
    return list(iter_members(io.BytesIO(data), "s.tar", is_whole=True))


def block(data):
    return data + padding(len(data))


def test_offsets_of_headers_and_contents():
    long_name = "deep/" * 30 + "b.png"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("a.png", b"1" * 600), (long_name, b"2")):
            tar.addfile(info(name, len(data)), io.BytesIO(data))
    data = buffer.getvalue()
    first, second = members(data)
    assert (first.offset, first.data_offset) == (0, BLOCK)
    assert second.offset == 3 * BLOCK  # where its pax header starts
    assert second.name == long_name
    for member in (first, second):
        assert data[member.data_offset :].startswith(member.data)


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("old.png", {"type": tarfile.AREGTYPE}),
        ("contiguous.png", {"type": tarfile.CONTTYPE}),
        ("x" * 90 + "/" + "y" * 60 + ".png", {}),
        ("ümlaut 漢字.png", {}),
        ("owned.png", {"uid": 2**20, "uname": "someone", "mtime": 1.5e9}),
    ],
)
def test_files_of_every_dialect(fmt, name, changes):
    header = info(name, 3, **changes).tobuf(fmt)
    assert [(m.name, m.data) for m in members(header + block(b"abc") + END)] == [(name, b"abc")]


@pytest.mark.parametrize(
    ("kind", "pax"),
    [
        (tarfile.SYMTYPE, {}),
        (tarfile.LNKTYPE, {}),
        (tarfile.CHRTYPE, {}),
        (tarfile.FIFOTYPE, {}),
        (tarfile.GNUTYPE_SPARSE, {}),
        (tarfile.REGTYPE, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    ],
)
def test_what_is_no_plain_file_is_refused(kind, pax):
    header = info("a.png", type=kind, pax_headers=pax).tobuf(tarfile.PAX_FORMAT)
    with pytest.raises(ShardFormatError, match=r"bad_member: s\.tar at byte \d+: 'a\.png' is"):
        members(header + END)
