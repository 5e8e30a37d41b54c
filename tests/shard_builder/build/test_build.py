import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_stream.errors import ConfigError, RecordError, StoreError
from grpo_stream.records.keys import make_key
from grpo_stream.records.stored_image import ImageReader
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore
from shard_builder.build.build import BuildSettings, TooManyRejectsError, build
from shard_builder.build.chunk_plan import ShardLimits, Splits
from tests.shard_builder.support import files_of, lines_of, samples_of
from tests.shards.support import image_bytes

NUM_GOOD, NUM_BAD = 7, 2


def record(number, **change):
    name = f"img/pic {number}.png"
    return {"image": name, "prompt": f"Click {number}", "solution": [1, 2, 20, 30]} | change


@pytest.fixture
def settings(tmp_path):
    images = tmp_path / "data" / "img"
    images.mkdir(parents=True)
    for number in range(NUM_GOOD):
        (images / f"pic {number}.png").write_bytes(image_bytes((40, 30 + number)))
    rows = [record(number, split="test" if number > 4 else "train") for number in range(NUM_GOOD)]
    rows.insert(2, record(0, solution=[3, 3, 3, 3]))
    rows.append("no object")
    (tmp_path / "data" / "records.json").write_text(json.dumps(rows))
    return BuildSettings(
        inputs=(str(tmp_path / "data" / "records.json"),),
        images_root=str(tmp_path / "data"),
        out=str(tmp_path / "out"),
        limits=ShardLimits(max_samples=3),
    )


def test_a_build(settings):
    result = build(settings)
    assert (result.num_records, result.num_samples) == (NUM_GOOD + NUM_BAD, NUM_GOOD)
    assert result.rejects == {"box_empty": 1, "record_not_object": 1}
    manifest = Manifest.load(LocalStore(settings.out))
    assert manifest == result.manifest
    assert [shard.num_samples for shard in manifest.shards] == [2, 3, 2]
    samples = samples_of(Path(settings.out))
    assert [sample.prompt for sample in samples] == [f"Click {n}" for n in range(NUM_GOOD)]
    assert samples[2].key == "000000003_pic-2"
    assert lines_of(Path(settings.out) / "rejects.jsonl") == [
        {
            "input": str(settings.inputs[0]),
            "index": 2,
            "image": "img/pic 0.png",
            "cause": "box_empty",
            "detail": "solution=[3, 3, 3, 3] has no area",
        },
        {
            "input": str(settings.inputs[0]),
            "index": 8,
            "image": None,
            "cause": "record_not_object",
            "detail": "expected an object, found 'no object'",
        },
    ]


def test_a_rebuild_gives_the_same_bytes(settings):
    build(settings)
    first = files_of(Path(settings.out))
    build(replace(settings, overwrite=True))
    assert files_of(Path(settings.out)) == first
    build(replace(settings, out=f"{settings.out}-elsewhere"))
    assert files_of(Path(f"{settings.out}-elsewhere")) == first


def test_no_machine_path_in_the_manifest(settings, tmp_path):
    build(settings)
    assert str(tmp_path) not in (Path(settings.out) / "manifest.json").read_text()


def test_an_existing_data_set_is_not_touched(settings):
    build(settings)
    before = files_of(Path(settings.out))
    with pytest.raises(ConfigError, match=r"--out=.*holds another data set.*--overwrite"):
        build(replace(settings, where=(("split", "test"),)))
    assert files_of(Path(settings.out)) == before


def test_overwrite_leaves_nothing_old(settings):
    build(replace(settings, limits=ShardLimits(max_samples=1)))
    (Path(settings.out) / "notes.txt").write_text("mine")
    build(replace(settings, overwrite=True))
    manifest = Manifest.load(LocalStore(settings.out))
    names = {path.name for path in Path(settings.out).iterdir()}
    shards = {shard.name for shard in manifest.shards}
    assert names == shards | {f"{name}.{end}" for name in shards for end in ("idx", "index")} | {
        "manifest.json", "rejects.jsonl", "warnings.jsonl", "notes.txt",
    }  # fmt: skip


def test_a_stopped_build_is_no_data_set(settings):
    bad = Path(settings.inputs[0]).with_name("more.json")
    bad.write_text('[{"image": ')
    with pytest.raises(RecordError, match="input_not_json"):
        build(replace(settings, inputs=(*settings.inputs, str(bad))))
    assert not Path(settings.out).exists()
    with pytest.raises(TooManyRejectsError, match="2 rejects, at most 1 are allowed"):
        build(replace(settings, max_rejects=1))
    names = {path.name for path in Path(settings.out).iterdir()}
    assert "manifest.json" not in names
    assert not any(name.endswith(".tmp") for name in names)
    assert build(settings).is_new


def test_fail_at_the_first_reject_names_it(settings):
    with pytest.raises(TooManyRejectsError, match=r"records\.json record 2: box_empty"):
        build(replace(settings, max_rejects=0))


def test_dry_run_writes_nothing(settings):
    result = build(replace(settings, dry_run=True))
    assert (result.num_samples, result.manifest) == (NUM_GOOD, None)
    assert not Path(settings.out).exists()


def test_where_takes_a_part(settings):
    result = build(replace(settings, where=(("split", "test"),)))
    assert [sample.prompt for sample in samples_of(Path(settings.out))] == ["Click 5", "Click 6"]
    assert result.rejects == {"record_not_object": 1}


def test_shuffle_is_a_permutation_that_the_seed_decides(settings):
    orders = []
    for seed in (1, 1, 2, None):
        build(replace(settings, shuffle_seed=seed, overwrite=True))
        orders.append([sample.key for sample in samples_of(Path(settings.out))])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3]
    assert sorted(orders[0]) == sorted(orders[2]) == orders[3]


def test_shards_end_at_their_size_in_bytes(settings):
    build(replace(settings, limits=ShardLimits(max_samples=100, max_bytes=4096)))
    shards = Manifest.load(LocalStore(settings.out)).shards
    assert len(shards) > 1
    assert all(shard.num_bytes <= 4096 + 1024 for shard in shards)
    build(replace(settings, limits=ShardLimits(max_bytes=1), overwrite=True))
    assert len(samples_of(Path(settings.out))) == NUM_GOOD


def test_the_same_question_twice_is_warned_of(settings):
    rows = [record(0), record(0), record(0, solution=[2, 2, 9, 9]), record(0, prompt="Other")]
    Path(settings.inputs[0]).write_text(json.dumps(rows))
    assert build(settings).warnings == {"duplicate": 1, "conflict": 1}
    lines = lines_of(Path(settings.out) / "warnings.jsonl")
    assert [(line["index"], line["cause"]) for line in lines] == [(1, "duplicate"), (2, "conflict")]


def test_several_inputs_share_one_numbering(settings):
    build(replace(settings, inputs=settings.inputs * 2))
    keys = [sample.key for sample in samples_of(Path(settings.out))]
    assert len(set(keys)) == 2 * NUM_GOOD
    assert keys[NUM_GOOD] == "000000009_pic-0"


def test_nothing_left_is_an_error(settings):
    Path(settings.inputs[0]).write_text("[3]")
    message = r"no_samples: all of 1 records are rejected \(record_not_object 1\)\n.* record 0: "
    with pytest.raises(RecordError, match=message):
        build(settings)
    assert not (Path(settings.out) / "manifest.json").exists()


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("[]", (), "no_samples: the inputs hold no record"),
        ("[3, {}]", (("a", "b"),), "no_samples: all of 1 records are rejected"),
        ("[{}, {}]", (("a", "b"),), "no_samples: none of 2 records has what --where asks for"),
    ],
)
def test_it_is_told_why_nothing_is_left(settings, text, where, message):
    Path(settings.inputs[0]).write_text(text)
    with pytest.raises(RecordError, match=message):
        build(replace(settings, where=where))
    left = [path.name for path in Path(settings.out).rglob("*")]
    assert sorted(left) == (["rejects.jsonl", "warnings.jsonl"] if "rejected" in message else [])


def test_a_folder_that_cannot_be_written_is_known_before_the_inputs_are_read(settings):
    Path(settings.inputs[0]).write_text("damaged")
    Path(settings.out).write_text("a file")
    with pytest.raises(ConfigError, match=r"--out=.*must be a folder that can be written"):
        build(settings)
    Path(settings.out).unlink()
    with pytest.raises(RecordError, match="input_not_list"):
        build(settings)
    assert not Path(settings.out).exists()


@pytest.mark.parametrize("url", ["ftp://host/x", "pipe:cat", ""])
@pytest.mark.parametrize("field", ["out", "images_root"])
def test_a_wrong_url_is_told_with_its_flag(settings, field, url):
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')}='{url}': .*for example"):
        build(replace(settings, **{field: url}))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"limits": ShardLimits(max_samples=0)}, "--samples-per-shard"),
        ({"limits": ShardLimits(max_bytes=0)}, "--max-shard-bytes"),
    ],
)
def test_settings_that_cannot_work(settings, change, field):
    with pytest.raises(ConfigError, match=field):
        build(replace(settings, **change))


def test_paths_that_cannot_work(settings, tmp_path):
    with pytest.raises(ConfigError, match="INPUT"):
        build(replace(settings, inputs=(str(tmp_path / "absent.json"),)))
    with pytest.raises(ConfigError, match="--images-root"):
        build(replace(settings, images_root=str(tmp_path / "absent")))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        build(replace(settings, out=str(tmp_path / "file")))


def test_an_input_that_the_build_would_replace(settings):
    build(settings)
    inputs = (str(Path(settings.out) / "rejects.jsonl"),)
    with pytest.raises(ConfigError, match="is replaced by the build"):
        build(replace(settings, inputs=inputs, overwrite=True))
    assert Path(inputs[0]).exists()


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/b/Page 1.png", "000000007_Page-1"),
        ("ü😀.png", "000000007"),
        ("a.b.c.png", "000000007_a-b-c"),
        ("", "000000007"),
        ("x" * 100, "000000007_" + "x" * 40),
    ],
)
def test_keys(path, key):
    assert make_key(7, path) == key


def test_building_needs_no_torch(settings):
    script = (
        "import sys\n"
        "from shard_builder.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    words = ["build", settings.inputs[0], "--images-root", settings.images_root, "--out"]
    command = [sys.executable, "-c", script, *map(str, words), str(settings.out), "--quiet"]
    subprocess.run(command, check=True)


def test_a_bucket_that_fails_puts_no_image_into_the_wrong_split(settings, monkeypatch):
    def read(*_):
        raise StoreError("unreadable", "503")

    monkeypatch.setattr(ImageReader, "read", read)
    with pytest.raises(StoreError, match="503"):
        build(replace(settings, split=Splits((("val", 0.5),))))
    assert [path.name for path in Path(settings.out).rglob("*.json*")] == ["build.json"]
