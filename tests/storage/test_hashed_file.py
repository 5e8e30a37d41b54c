import errno
import hashlib
import os
import threading

import pytest

from grpo_stream.storage import hashed_file
from grpo_stream.storage.hashed_file import HashedFile


@pytest.mark.parametrize("sizes", [[], [0], [5], [10], [11], [3, 7, 1], [35], [4, 30, 0, 9, 1]])
def test_content_and_hash(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(hashed_file, "_BATCH_BYTES", 10)
    chunks = [bytes([number]) * size for number, size in enumerate(sizes, 1)]
    file = HashedFile(tmp_path / "file")
    for chunk in chunks:
        file.write([chunk])
    data = b"".join(chunks)
    assert file.num_bytes == len(data)
    assert file.finish() == hashlib.sha256(data).hexdigest()
    file.close()
    assert (tmp_path / "file").read_bytes() == data


def test_a_full_disk_is_told_of_and_no_thread_is_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hashed_file, "_BATCH_BYTES", 10)
    monkeypatch.setattr(os, "write", full)
    before = threading.active_count()
    file = HashedFile(tmp_path / "file")
    with pytest.raises(OSError, match="No space"):
        file.write([bytes(10)] * 3)
    file.close()
    assert threading.active_count() == before
    assert file.raw.closed
