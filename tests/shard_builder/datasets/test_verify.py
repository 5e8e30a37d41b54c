import hashlib
import json
from dataclasses import replace

import pytest

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.shards.index import ShardIndex, energon_index_name, index_crc32, index_name
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.storage.store import LocalStore
from shard_builder.datasets import scan_shards
from shard_builder.datasets.verify import VerifyError, VerifyResult, verify
from tests.shards.support import image_bytes, make_sample, write_set

SAMPLES = [make_sample(f"{i:06d}", f"Click {i}") for i in range(4)]


def run(folder, **settings):
    store = LocalStore(folder)
    return verify(store, Manifest.load(store), **settings)


def several(key="000009", boxes=((0, 0, 8, 6), (1, 1)), lies_in=(0, 1)):
    more = ((Size(4, 2), Size(8, 4)),)
    meta = make_meta("Find", boxes, Size(8, 6), Size(8, 6), {}, more, lies_in)
    return Sample(key, image_bytes(), "png", meta, (("jpg", image_bytes((4, 2), kind="JPEG")),))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_sound_set(tmp_path, workers):
    samples = [*SAMPLES, several()]
    manifest = write_set(tmp_path, samples)
    told = []
    result = run(tmp_path, workers=workers, on_progress=lambda *done: told.append(done))
    assert result == VerifyResult(5, sum(info.num_bytes for info in manifest.shards), 3)
    assert len(told) == 5
    assert sum(num_bytes for _, num_bytes in told) == result.num_bytes - 3 * 1024


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (0, r"shard-000002\.tar at byte 0: no tar header"),
        (540, r"shard-000002\.tar: key='000002'"),
        (-2530, r"shard-000002\.tar.*key='000003'"),
        (1020, r"shard-000002\.tar: its SHA-256 is not the manifest's"),  # padding
        (-300, r"shard-000002\.tar: more than zeros behind the tar's end mark"),
    ],
)
def test_a_flipped_byte(tmp_path, position, message):
    manifest = write_set(tmp_path, SAMPLES)
    path = tmp_path / manifest.shards[1].name
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerifyError, match=message):
        run(tmp_path)


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / write_set(tmp_path, SAMPLES[:1]).shards[0].name
    data = path.read_bytes()
    for position in range(0, len(data), 37):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(VerifyError, match=r"shard-000000\.tar"):
            run(tmp_path)


def test_a_cut_or_missing_shard(tmp_path):
    manifest = write_set(tmp_path, SAMPLES)
    path = tmp_path / manifest.shards[0].name
    whole = path.read_bytes()
    path.write_bytes(whole[:-512])
    with pytest.raises(VerifyError, match="the manifest says"):
        run(tmp_path)
    path.write_bytes(whole[:-1600])
    with pytest.raises(VerifyError, match=r"truncated: .*the last sound sample is key='000000'"):
        run(tmp_path)
    path.unlink()
    with pytest.raises(StoreError, match="not_found"):
        run(tmp_path)


def test_a_missing_or_foreign_index(tmp_path):
    manifest = write_set(tmp_path, SAMPLES)
    first, second = (tmp_path / index_name(shard.name) for shard in manifest.shards)
    second.write_bytes(first.read_bytes())
    with pytest.raises(VerifyError, match=r"shard-000002\.tar\.index is of another tar"):
        run(tmp_path)
    first.unlink()
    with pytest.raises(StoreError, match=r"not_found: .*run shard-builder index"):
        run(tmp_path)


def test_a_missing_or_foreign_energon_index(tmp_path):
    manifest = write_set(tmp_path, SAMPLES)
    path = tmp_path / energon_index_name(manifest.shards[1].name)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(VerifyError, match=r"shard-000002\.tar\.idx does not list"):
        run(tmp_path)
    path.unlink()
    with pytest.raises(StoreError, match="not_found"):
        run(tmp_path)


def change_index(folder, info, change):
    store = LocalStore(folder)
    index = ShardIndex.load(store, info)
    entries = change([index[i] for i in range(len(index))])
    data = ShardIndex.from_entries(entries, info.num_bytes, info.sha256).to_bytes()
    store.write(index_name(info.name), data)
    changed = replace(info, num_samples=len(entries), index_crc32=index_crc32(data))
    Manifest(2, (changed,)).save(store)


def of_first_part(change):
    def changed(entries):
        first, *rest = entries[0].parts
        return [entries[0]._replace(parts=(change(first), *rest)), *entries[1:]]

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[:3], "the index lists 3 samples, the tar holds more"),
        (lambda entries: [entries[0], *entries[2:]], "key='000001': the (png's CRC|index points)"),
        (of_first_part(lambda part: part._replace(width=99)), "key='000000': sizes differ"),
        (of_first_part(lambda part: part._replace(crc32=1)), "'000000': the png's CRC-32 differs"),
        (of_first_part(lambda part: part._replace(offset=0)), "key='000000': the index points"),
        (of_first_part(lambda part: part._replace(kind=2)), "key='000000': the index points"),
    ],
)
def test_a_sound_index_of_something_else(tmp_path, change, message):
    info = write_set(tmp_path, SAMPLES, per_shard=4).shards[0]
    change_index(tmp_path, info, change)
    with pytest.raises(VerifyError, match=message):
        run(tmp_path)


def meta(solution, size=(8, 6)):
    return make_meta("p", solution, Size(*size), Size(*size), {})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (SAMPLES[2]._replace(image=b"no image"), "image_unreadable"),
        (SAMPLES[2]._replace(image=image_bytes((9, 6))), "sizes differ: image 9x6"),
        (SAMPLES[2]._replace(meta=meta((1, 1, 9, 6))), "is outside 8x6"),
        (SAMPLES[2]._replace(meta=meta((3, 3, 3, 5))), "is outside 8x6"),
        (SAMPLES[2]._replace(meta=meta((8, 0))), "is outside 8x6"),
        (SAMPLES[2]._replace(meta=meta((1, 1), (5, 5))), "sizes differ"),
        (
            SAMPLES[2]._replace(meta=meta([(1, 1), (1, 1, 2, 7)])),
            r"solution=\(1.0, 1.0, 2.0, 7.0\) is",
        ),
        (SAMPLES[2]._replace(key="000001"), "is not unique in the set: shard-000000.tar has it"),
        (several("000002", lies_in=(1, 1)), r"solution=\(0.0, 0.0, 8.0, 6.0\) is outside 4"),
        (several("000002")._replace(more_images=(("png", b"x"),)), "image 1: image_unreadable"),
        (several("000002")._replace(more_images=(("png", image_bytes()),)), "differ: image 1 8x6"),
    ],
)
def test_a_well_packed_but_wrong_sample_is_named(tmp_path, wrong, message):
    write_set(tmp_path, [*SAMPLES[:2], wrong, SAMPLES[3]])
    with pytest.raises(VerifyError, match=rf"shard-000002\.tar: key='{wrong.key}'.*{message}"):
        run(tmp_path)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_the_first_fault_in_the_sets_order_is_named(tmp_path, workers):
    samples = [make_sample(f"{i:06d}", size=(300, 300) if i < 4 else (8, 6)) for i in range(12)]
    samples[5] = samples[5]._replace(image=b"early")
    samples[8] = samples[8]._replace(image=b"late")
    write_set(tmp_path, samples, per_shard=2)
    for _ in range(5):
        with pytest.raises(VerifyError, match="key='000005'"):
            run(tmp_path, workers=workers)


def test_a_repeated_key_before_another_fault_is_named_first(tmp_path):
    samples = [make_sample(key) for key in ("c", "a", "b", "a", "d", "e")]
    samples[4] = samples[4]._replace(image=b"late")
    write_set(tmp_path, samples)
    with pytest.raises(VerifyError, match=r"shard-000002\.tar: key='a' is not unique"):
        run(tmp_path)


def test_keys_of_equal_hashes_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("shard_builder.datasets.verify.key_hash", lambda _: 7)
    monkeypatch.setattr(scan_shards, "key_hash", lambda _: 7)
    write_set(tmp_path, SAMPLES)
    run(tmp_path)


def save_lists(folder, manifest, rejects, warnings, **totals):
    for name, causes in (("rejects", rejects), ("warnings", warnings)):
        text = "".join(json.dumps({"cause": cause}) + "\n" for cause in causes)
        (folder / f"{name}.jsonl").write_text(text)
    sums = {"num_rejects": 3, "num_warnings": 1} | totals
    replace(manifest, totals=sums, rejects={"box_empty": 2, "image_empty": 1}).save(
        LocalStore(folder)
    )


REJECTS = ["box_empty", "image_empty", "box_empty"]


@pytest.mark.parametrize(
    ("rejects", "warnings", "totals", "message"),
    [
        (REJECTS, ["conflict"], {}, None),
        (REJECTS[:2], ["conflict"], {}, "rejects.jsonl: 2 lines, the manifest says num_rejects=3"),
        (["a", *REJECTS[:2]], ["conflict"], {}, "rejects.jsonl: its causes"),
        (REJECTS, [], {}, "warnings.jsonl: 0 lines"),
        (REJECTS, ["conflict"], {"num_samples": 5}, "num_samples is 5 in its totals, found are"),
        (REJECTS, ["conflict"], {"num_bytes": 5}, "num_bytes is 5"),
        (REJECTS, ["conflict"], {"num_rejects": 4}, "num_rejects is 4"),
        (REJECTS, ["conflict"], {"num_records": 9}, "num_records is 9 in its totals, found are 7"),
        (REJECTS, ["conflict"], {"num_multi_image": 1}, "num_multi_image is 1"),
        (REJECTS, ["conflict"], {"num_multi_box": 2}, "num_multi_box is 2"),
    ],
)
def test_lists_and_totals(tmp_path, rejects, warnings, totals, message):
    manifest = write_set(tmp_path, SAMPLES)
    save_lists(tmp_path, manifest, rejects, warnings, **totals)
    if message is None:
        run(tmp_path)
        (tmp_path / "rejects.jsonl").write_text('{"cause": 1}\n[]\n')
        with pytest.raises(VerifyError, match=r"rejects\.jsonl line 2: no object"):
            run(tmp_path)
        (tmp_path / "rejects.jsonl").unlink()
        with pytest.raises(StoreError, match=r"rejects\.jsonl"):
            run(tmp_path)
    else:
        with pytest.raises(VerifyError, match=message):
            run(tmp_path)


def test_a_tar_that_the_manifest_does_not_name(tmp_path):
    write_set(tmp_path, SAMPLES)
    for name in (".shard-000009.tar.1.tmp", "notes.txt", ".building/x.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    run(tmp_path)
    (tmp_path / "shard-000009.tar").touch()
    with pytest.raises(VerifyError, match=r"shard-000009\.tar is there but the manifest"):
        run(tmp_path)


def test_workers_must_be_positive(tmp_path):
    write_set(tmp_path, SAMPLES)
    with pytest.raises(ConfigError, match="--workers"):
        run(tmp_path, workers=0)


def test_a_hash_is_of_the_file(tmp_path):
    info = write_set(tmp_path, SAMPLES).shards[0]
    assert info.sha256 == hashlib.sha256((tmp_path / info.name).read_bytes()).hexdigest()
