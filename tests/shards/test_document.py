"""docs/shards.md is enough to read a data set: nothing but its tables, ``struct`` and JSON here."""

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path

from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore
from tests.shards.support import make_multi_sample, make_sample, write_set

DOCUMENT = (Path(__file__).parents[2] / "docs" / "shards.md").read_text(encoding="utf-8")
CODES = {"u16": "H", "u32": "I", "u64": "Q", "bytes[8]": "8s", "bytes[32]": "32s"}
SAMPLES = [
    make_sample("000000_a"),
    make_multi_sample("000001_b"),
    make_sample("000002_c", note="ü"),
]


def table(title):
    """The struct and the field names of one of the document's byte tables."""
    text = DOCUMENT[DOCUMENT.index(f"**{title}**, ") :]
    total = int(re.findall(r"(\d+) bytes", text)[0])
    rows = re.findall(r"^\| (\d+) \| (\S+) \| `(\w+)` \|", text.split("\n\n")[1], re.MULTILINE)
    layout = struct.Struct("<" + "".join(CODES[kind] for _, kind, _ in rows))
    offsets = [
        struct.calcsize("<" + "".join(CODES[k] for _, k, _ in rows[:i])) for i in range(len(rows))
    ]
    assert offsets == [int(offset) for offset, _, _ in rows]
    assert layout.size == total
    return layout, [name for _, _, name in rows]


def read_rows(title, data, position, count):
    layout, names = table(title)
    rows = (layout.unpack_from(data, position + i * layout.size) for i in range(count))
    return [dict(zip(names, row, strict=True)) for row in rows], position + count * layout.size


def read_index(data):
    (header,), position = read_rows("Header", data, 0, 1)
    assert header["magic"] == b"GRPOIDX\0"
    assert (header["version"], header["reserved"]) == (3, 0)
    samples, position = read_rows("Sample", data, position, header["num_samples"])
    parts, position = read_rows("Part", data, position, header["num_parts"])
    assert (header["sample_bytes"], header["part_bytes"]) == (24, 32)
    assert struct.unpack_from("<I", data, position) == (zlib.crc32(data[:position]),)
    assert len(data) == position + 4
    return header, samples, parts


def test_a_reader_from_the_document_alone(tmp_path):
    write_set(tmp_path, SAMPLES, per_shard=2)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    found = []
    for shard in manifest["shards"]:
        tar = (tmp_path / shard["name"]).read_bytes()
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (shard["num_bytes"], shard["sha256"])
        header, samples, parts = read_index((tmp_path / f"{shard['name']}.index").read_bytes())
        assert (header["num_samples"], header["tar_bytes"]) == (shard["num_samples"], len(tar))
        assert header["tar_sha256"].hex() == shard["sha256"]
        index = (tmp_path / f"{shard['name']}.index").read_bytes()
        assert struct.unpack("<I", index[-4:]) == (shard["index_crc32"],)
        for row in samples:
            run = tar[row["offset"] : row["offset"] + row["num_bytes"]]
            images, meta = {}, None
            for part in parts[row["first_part"] : row["first_part"] + row["num_parts"]]:
                start = part["offset"] - row["offset"]
                content = run[start : start + part["num_bytes"]]
                assert zlib.crc32(content) == part["crc32"]
                if part["kind"] == 1:
                    meta = json.loads(content)
                else:
                    images[part["image"]] = (part["kind"], part["width"], part["height"], content)
            key = run[:100].split(b".")[0].decode()
            found.append((key, meta, [images[i] for i in range(len(images))]))
        ends = [row["offset"] + row["num_bytes"] for row in samples]
        energon = struct.pack(f"<{len(samples) + 1}Q", *(r["offset"] for r in samples), ends[-1])
        assert (tmp_path / f"{shard['name']}.idx").read_bytes() == energon
    kinds = {"jpg": 2, "png": 3, "webp": 4}
    assert found == [
        (
            sample.key,
            sample.meta,
            [
                (kinds[suffix], *size, data)
                for (suffix, data), size in zip(sample.images, sample.sizes, strict=True)
            ],
        )
        for sample in SAMPLES
    ]


def test_the_digest_is_as_the_document_says(tmp_path):
    write_set(tmp_path, SAMPLES)
    raw = json.loads((tmp_path / "manifest.json").read_bytes())
    assert raw["version"] == 2
    lines = ["manifest 1"]
    lines += [json.dumps([s["name"], s["num_samples"], s["sha256"]]) for s in raw["shards"]]
    text = "".join(f"{line}\n" for line in lines)
    assert hashlib.sha256(text.encode()).hexdigest() == raw["digest"]
    assert raw["digest"] == Manifest.load(LocalStore(tmp_path)).digest


def test_the_size_that_the_document_tells():
    assert f"{80 + 1000 * 24 + 2000 * 32 + 4:,} bytes" in DOCUMENT
