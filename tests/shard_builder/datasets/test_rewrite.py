import tarfile

import pytest

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, ShardFormatError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.storage.store import LocalStore, open_store
from shard_builder.build.chunk_plan import ShardLimits, Splits
from shard_builder.datasets.copy_samples import SetWriter
from shard_builder.datasets.index_tars import index_tars
from shard_builder.datasets.rewrite import head, merge, split
from shard_builder.datasets.verify import verify
from tests.shard_builder.support import files_of, samples_of
from tests.shards.support import image_bytes, make_sample, tar_of, write_set

COLOURS = ("red", "green", "blue", "white", "black", "grey", "brown", "pink", "cyan", "gold")


def is_sound(folder):
    store = LocalStore(folder)
    return verify(store, Manifest.load(store)).num_samples


@pytest.fixture
def data_set(tmp_path):
    folder = tmp_path / "set"
    samples = [make_sample(f"{number:06d}", f"prompt {number}") for number in range(10)]
    write_set(folder, samples, per_shard=4)
    return folder


def test_a_head_is_the_first_samples_byte_for_byte(data_set, tmp_path):
    told = []
    manifest = head(str(data_set), str(tmp_path / "out"), 6, on_progress=lambda *n: told.append(n))
    assert samples_of(tmp_path / "out") == samples_of(data_set)[:6]
    assert [info.num_samples for info in manifest.shards] == [4, 2]
    assert is_sound(tmp_path / "out") == sum(count for count, _ in told) == 6
    first = "shard-000000.tar"  # whole shards are the same files
    for name in (first, f"{first}.index", f"{first}.idx"):
        assert files_of(tmp_path / "out")[name] == files_of(data_set)[name]
    source = Manifest.load(LocalStore(data_set))
    assert manifest.settings["sources"] == [
        {"digest": source.digest, "num_samples": 10, "settings": source.settings}
    ]
    assert manifest.totals["num_samples"] == 6
    assert manifest.totals["num_multi_image"] == 0


def test_a_head_longer_than_the_set_is_the_set(data_set, tmp_path):
    manifest = head(str(data_set), str(tmp_path / "out"), 99)
    source = Manifest.load(LocalStore(data_set))
    assert [s.sha256 for s in manifest.shards] == [s.sha256 for s in source.shards]


def test_a_merge_is_one_set_behind_the_other(data_set, tmp_path):
    write_set(tmp_path / "more", [make_sample(f"x{n}") for n in range(3)])
    manifest = merge([str(data_set), str(tmp_path / "more")], str(tmp_path / "out"))
    assert samples_of(tmp_path / "out") == samples_of(data_set) + samples_of(tmp_path / "more")
    assert is_sound(tmp_path / "out") == 13
    assert len(manifest.shards) == 5
    digests = [Manifest.load(LocalStore(f)).digest for f in (data_set, tmp_path / "more")]
    assert [source["digest"] for source in manifest.settings["sources"]] == digests


def test_one_key_twice_is_named_and_no_manifest_is_left(data_set, tmp_path):
    write_set(tmp_path / "more", [make_sample("x"), make_sample("000005"), make_sample("000006")])
    out = tmp_path / "out"
    with pytest.raises(
        ConfigError, match=r"'000005' is in shard-000001\.tar and shard-000003\.tar"
    ):
        merge([str(data_set), str(tmp_path / "more")], str(out))
    assert not (out / "manifest.json").exists()


def test_prefixes_make_keys_unique_and_change_nothing_else(data_set, tmp_path):
    out = tmp_path / "out"
    manifest = merge([str(data_set)] * 2, str(out), prefixes=["", "b-"])
    found, given = samples_of(out), samples_of(data_set)
    assert found[:10] == given
    assert [sample.key for sample in found[10:]] == [f"b-{sample.key}" for sample in given]
    assert [(s.image, s.meta) for s in found[10:]] == [(s.image, s.meta) for s in given]
    assert is_sound(out) == 20
    assert manifest.settings["prefixes"] == ["", "b-"]


@pytest.mark.parametrize("prefix", ["a.", "_", "x" * 90])
def test_a_prefix_that_makes_no_key_is_refused(data_set, tmp_path, prefix):
    with pytest.raises(ConfigError) as caught:
        merge([str(data_set)] * 2, str(tmp_path / "out"), prefixes=["", prefix])
    assert caught.value.field == "--prefix"
    assert not list((tmp_path / "out").glob(".*"))  # no unfinished shard is left


def paint(number, colour, key=None):
    meta = make_meta(f"prompt {number}", (1, 2), Size(8, 6), Size(8, 6), {})
    return Sample(key or f"{number:06d}", image_bytes(colour=colour), "png", meta)


def test_equal_images_are_never_parted(tmp_path):
    samples = [paint(number, COLOURS[number % 10]) for number in range(60)]
    write_set(tmp_path / "set", samples, per_shard=20)
    splits = Splits((("val", 0.3), ("test", 0.3)))
    limits = ShardLimits(max_samples=7)
    made = split(str(tmp_path / "set"), str(tmp_path / "out"), splits, limits=limits)
    assert list(made) == ["val", "test", "train"]
    found = {name: samples_of(tmp_path / "out" / name) for name in made}
    assert sorted(s.key for some in found.values() for s in some) == [s.key for s in samples]
    by_key = {sample.key: sample for sample in samples}
    for name, some in found.items():
        assert some == [by_key[key] for key in sorted(sample.key for sample in some)]
        assert all(splits.of(sample.image) == name for sample in some)
        assert len(some) % 6 == 0
        assert is_sound(tmp_path / "out" / name) == len(some)
        assert all(info.num_samples <= 7 for info in made[name].shards)
        assert made[name].settings["split_name"] == name


def test_images_that_hang_together_stay_together(tmp_path):
    def several(number, *colours):
        sizes = [(Size(8, 6), Size(8, 6))] * (len(colours) - 1)
        meta = make_meta("p", (1, 2), Size(8, 6), Size(8, 6), {}, sizes)
        images = [image_bytes(colour=colour) for colour in colours]
        more = tuple(("png", image) for image in images[1:])
        return Sample(f"{number:06d}", images[0], "png", meta, more)

    samples = [
        *(paint(number, COLOURS[number % 10]) for number in range(10)),
        several(10, *COLOURS[:2]),
        several(11, *COLOURS[1:4]),
        several(12, COLOURS[5], COLOURS[0]),
        *(paint(number, f"#0000{number}") for number in range(20, 60)),
    ]
    write_set(tmp_path / "set", samples, per_shard=5)
    for share in (0.2, 0.4, 0.6, 0.8):
        out = tmp_path / f"out{share}"
        made = split(str(tmp_path / "set"), str(out), Splits((("val", share),)))
        homes = {sample.key: name for name in made for sample in samples_of(out / name)}
        together = {homes[f"{number:06d}"] for number in (0, 1, 2, 3, 5, 10, 11, 12)}
        assert len(together) == 1
        assert len(homes) == 53
    assert made["train"].totals["num_multi_image"] + made["val"].totals["num_multi_image"] == 3


def test_a_split_without_samples_is_refused(tmp_path):
    write_set(tmp_path / "set", [paint(0, "red"), paint(1, "red")])
    with pytest.raises(ConfigError, match="got none of the images"):
        split(str(tmp_path / "set"), str(tmp_path / "out"), Splits((("val", 0.5),)))
    assert not list(tmp_path.glob("out/*/manifest.json"))


def test_what_lies_in_the_way_is_kept_unless_told(data_set, tmp_path):
    out = tmp_path / "out"
    head(str(data_set), str(out), 9)
    (out / "notes.txt").write_text("mine")
    (out / ".shard-000001.tar.1.tmp").write_bytes(b"unfinished")
    with pytest.raises(ConfigError, match="holds another data set"):
        head(str(data_set), str(out), 2)
    assert is_sound(out) == 9
    head(str(data_set), str(out), 2, overwrite=True)
    assert is_sound(out) == 2
    assert sorted(files_of(out)) == [
        "manifest.json",
        "notes.txt",
        "shard-000000.tar",
        "shard-000000.tar.idx",
        "shard-000000.tar.index",
    ]


def test_a_set_is_never_written_over_itself(data_set, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(data_set)
    for out in (data_set, link):
        with pytest.raises(ConfigError, match="is the data set itself"):
            head(str(data_set), str(out), 2, overwrite=True)
    assert is_sound(data_set) == 10


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda a, out: head(a, out, 0), "--num-samples"),
        (lambda a, out: merge([a], out), "URL"),
        (lambda a, out: merge([a, a], out, prefixes=["x"]), "--prefix"),
        (lambda a, out: split(a, out, Splits((("val", 1.5),))), "--split"),
    ],
)
def test_settings_that_cannot_work(data_set, tmp_path, call, field):
    with pytest.raises(ConfigError) as caught:
        call(str(data_set), str(tmp_path / "out"))
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()


def test_damage_is_found_on_the_way(data_set, tmp_path):
    path = data_set / "shard-000004.tar"
    data = bytearray(path.read_bytes())
    data[530] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardFormatError, match=r"shard-000004\.tar.*CRC-32"):
        head(str(data_set), str(tmp_path / "out"), 10)
    assert not (tmp_path / "out").exists()


def test_tars_that_others_made(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    meta = b'{"prompt": "p", "solution": [1, 2]}'
    members = {"README": b"hello"}
    for key in ("a/k1", "a/" + "k" * 120):
        members |= {f"{key}.PNG": image_bytes(), f"{key}.txt": b"words", f"{key}.json": meta}
    (folder / "x.tar").write_bytes(tar_of(members.items()))
    index_tars(str(folder), workers=1, overwrite=False)
    head(str(folder), str(tmp_path / "out"), 5)
    assert samples_of(tmp_path / "out") == samples_of(folder)
    assert is_sound(tmp_path / "out") == 2
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        texts = [tar.extractfile(m) for m in tar.getmembers() if m.name.endswith("txt")]
        assert [text.read() for text in texts if text] == [b"words"] * 2


def test_into_a_bucket(data_set, bucket):
    manifest = head(str(data_set), f"{bucket}/out", 6)
    store = open_store(f"{bucket}/out")
    assert verify(store, Manifest.load(store)).num_samples == 6
    assert len(store.walk()) == 1 + 3 * len(manifest.shards)
    assert head(str(data_set), f"{bucket}/out", 6) == manifest  # it is there already


def killed_after(num_shards, monkeypatch):
    """Ends the writing as a kill does: nothing is tidied up."""
    end_shard = SetWriter.end_shard

    def end_and_die(self):
        end_shard(self)
        if len(self.shards) >= num_shards:
            raise KeyboardInterrupt

    monkeypatch.setattr(SetWriter, "end_shard", end_and_die)


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("name", ["head", "merge", "split"])
def test_a_killed_command_goes_on(data_set, tmp_path, monkeypatch, name, num_shards):
    splits, limits = Splits((("val", 0.5),)), ShardLimits(max_samples=2)
    more = [paint(number, COLOURS[number % 10], f"x{number}") for number in range(10)]
    write_set(tmp_path / "more", more, per_shard=4)
    other = str(tmp_path / "more")
    acts = {
        "head": lambda out: head(str(data_set), out, 9),
        "merge": lambda out: merge([str(data_set), other], out),
        "split": lambda out: split(other, out, splits, limits=limits),
    }
    whole, out = tmp_path / "whole", tmp_path / "out"
    acts[name](str(whole))
    with monkeypatch.context() as patch:
        killed_after(num_shards, patch)
        with pytest.raises(KeyboardInterrupt):
            acts[name](str(out))
    paths = [path for path in out.rglob("shard-*.tar") if "_build" not in path.parts]
    assert len(paths) >= num_shards
    before = {path: path.stat().st_mtime_ns for path in paths}
    with pytest.raises(ConfigError, match="holds an unfinished build that differs in"):
        head(other, str(out), 3)
    acts[name](str(out))
    assert {path: path.stat().st_mtime_ns for path in before} == before, "written again"
    assert deep_files(out) == deep_files(whole)


def deep_files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in paths}
