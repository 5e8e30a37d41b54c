"""verify, stats and index in parts: what one machine finds, and no shard is read twice."""

import contextlib
import io
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore, open_store
from shard_builder.build.build import build
from shard_builder.cli import main
from shard_builder.datasets.verify import VerifyPass
from shard_builder.parts.plan_request import Part
from shard_builder.passes.run_pass import PartDone, PassSettings, run_pass
from shard_builder.passes.shard_pass import pack_values, unpack_values
from tests.shard_builder.support import files_of, make_settings, write_raw
from tests.shards.support import make_sample, write_set

NUM_PARTS = 3


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    build(make_settings(write_raw(folder / "raw", 60), folder / "set"))
    return folder / "set"


@pytest.fixture
def data_set(built, tmp_path):
    """A copy that a test may change; ten tars and more."""
    return shutil.copytree(built, tmp_path / "set")


def run(command, *words):
    """Exit code, and what was printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([command, *map(str, words), "--quiet", "--workers", "1"])
    return code, said.getvalue()


def part(command, place, number, num_parts=NUM_PARTS, *more):
    return run(command, place, "--part", f"{number}/{num_parts}", *more)


def only_tars(folder):
    for path in list(folder.iterdir()):
        if path.suffix != ".tar":
            path.unlink()
    return folder


@pytest.mark.parametrize("command", ["verify", "stats", "index"])
def test_any_order_gives_what_one_machine_finds(command, data_set, tmp_path):
    if command == "index":
        only_tars(data_set)
    here = shutil.copytree(data_set, tmp_path / "here")
    flags = ["--json"] if command == "stats" else []
    code, expected = run(command, here, *flags)
    assert code == 0
    numbers = random.Random(3).sample(range(1, NUM_PARTS + 1), NUM_PARTS)
    before = files_of(data_set)
    for count, number in enumerate(numbers[:-1], 1):
        code, words = part(command, data_set, number, NUM_PARTS, *flags)
        missing = ", ".join(map(str, sorted(numbers[count:])))
        assert (code, words.rpartition("not yet whole: ")[2]) == (0, f"{missing}\n")
    beside = {name for name in files_of(data_set) if not name.startswith("_parts/")}
    assert beside == set(before)  # nothing that a reader sees
    # The last one, one once more, and to make sure.
    for which in (numbers[-1], numbers[0], "join"):
        assert part(command, data_set, which, NUM_PARTS, *flags) == (0, expected)
    left = [name for name in files_of(data_set) if name.startswith("_parts/")]
    assert sorted(name.rpartition("/")[2] for name in left) == ["request.json", "result.json"]
    found = {n: data for n, data in files_of(data_set).items() if not n.startswith("_parts/")}
    assert found == files_of(here)


def test_joining_names_what_is_missing_and_reads_no_shard(data_set):
    part("verify", data_set, 2)
    code, words = part("verify", data_set, "join")
    assert code == 1
    assert "of 3 parts 2 are not whole yet: 1, 3. Run them, with --part 1/3" in words
    for number in (1, 2):
        assert part("verify", data_set, number)[0] == 0
    aside = data_set.parent / "aside"
    part_of_3 = sorted(data_set.glob("*.tar"))[2::3]
    aside.mkdir()
    for tar in set(data_set.glob("*.tar")) - set(part_of_3):
        tar.rename(aside / tar.name)
    assert part("verify", data_set, 3)[0] == 0  # all that it reads are its own


def test_a_fault_is_named_by_its_part_and_found_no_more_once_it_is_repaired(data_set):
    tars = sorted(data_set.glob("*.tar"))
    sound = tars[1].read_bytes()
    tars[1].write_bytes(sound[:-1])
    for number in (1, 3):
        assert part("verify", data_set, number)[0] == 0
    code, words = part("verify", data_set, 2)
    assert code == 1
    assert tars[1].name in words
    tars[1].write_bytes(sound)
    code, words = part("verify", data_set, 2)
    assert (code, words[:7]) == (0, "sound: ")


def test_a_key_of_two_parts_is_found_when_they_are_joined(tmp_path):
    write_set(tmp_path, [make_sample(key) for key in "abcadefg"], per_shard=2)
    for number in (1, 3, 4):
        assert part("verify", tmp_path, number, 4)[0] == 0
    code, words = part("verify", tmp_path, 2, 4)
    assert code == 1
    assert "shard-000002.tar: key='a' is not unique in the set: shard-000000.tar has it" in words


@pytest.mark.parametrize(
    ("number", "num_parts", "flags", "words"),
    [
        (2, 4, [], "num_parts is 4 here and 3 there"),
        (2, 3, ["--max-pixels", "78400"], "settings.max_pixels is 78400 here and"),
        (0, 3, [], "as in 3/10; join/10 only joins"),
        (4, 3, [], "parts are 1 to N"),
        ("plan", 3, [], "as in 3/10"),
    ],
)
def test_parts_that_do_not_agree_write_nothing(data_set, number, num_parts, flags, words):
    assert part("stats", data_set, 1)[0] == 0
    before = files_of(data_set)
    code, said = part("stats", data_set, number, num_parts, *flags)
    assert code == 2
    assert words in said
    assert files_of(data_set) == before


def test_another_set_or_number_of_parts_begins_anew_once_all_is_concluded(data_set):
    for number in (1, 2, 3):
        part("stats", data_set, number)
    code, words = part("stats", data_set, 1, 2)
    assert (code, words.rpartition(": ")[2]) == (0, "2\n")
    code, words = part("stats", data_set, 2, 2)
    assert words == run("stats", data_set)[1]
    assert len(list((data_set / "_parts/stats").glob("*/result.json"))) == 1


def test_a_part_that_changed_set_is_refused(data_set):
    part("stats", data_set, 1)
    store = LocalStore(data_set)
    manifest = Manifest.load(store)
    manifest.totals["num_warnings"] = 7
    manifest.save(store)
    code, words = part("stats", data_set, 2)
    assert code == 2
    assert "manifest_sha256 is" in words


def test_all_parts_at_once_and_twice(data_set, tmp_path):
    store = LocalStore(data_set)

    def one(number):
        one = VerifyPass(store, Manifest.load(store))
        settings = PassSettings(part=Part(number, NUM_PARTS), parts_at=str(tmp_path / "parts"))
        return run_pass(one, settings)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(one, [1, 2, 3] * 2))
    assert any(not isinstance(result, PartDone) for result in found)
    assert not (data_set / "_parts").exists()


def test_a_place_that_cannot_be_written_is_named(data_set, tmp_path):
    (tmp_path / "file").write_text("")
    code, words = part("verify", data_set, 1, 3, "--parts-at", tmp_path / "file")
    assert code == 2
    assert "--parts-at" in words
    code, words = run("verify", data_set, "--parts-at", tmp_path)
    assert (code, "goes with --part I/N" in words) == (2, True)


def test_a_damaged_finding_is_named(data_set):
    part("verify", data_set, 1)
    part("verify", data_set, 2)
    next((data_set / "_parts/verify").glob("*/*.z")).write_bytes(b"no")
    code, words = part("verify", data_set, 3)
    assert code == 1
    assert "is damaged" in words


def test_values_come_back_as_they_were():
    values = {"a": [1, 2.5, None, float("inf")], "b": b"\0\xff", "c": {"d": b""}, "e": "\ud800"}
    assert unpack_values(pack_values(values), "x") == values


def test_progress_as_json(data_set):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(["verify", str(data_set), "--part", "1/2", "--progress", "json"])
    found = json.loads(said.getvalue())
    assert (found["part"], found["missing_parts"]) == ("1/2", [2])


def test_more_parts_than_shards(tmp_path):
    write_set(tmp_path, [make_sample("a"), make_sample("b")], per_shard=1)
    code, words = part("verify", tmp_path, 4, 4)
    assert (code, words) == (0, "part 4/4 sound: 0 samples in 0 shards; not yet whole: 1, 2\n")
    assert part("verify", tmp_path, 1, 4)[0] == 0
    assert part("verify", tmp_path, 2, 4)[1].startswith("sound: 2 samples in 2 shards")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is here")
@pytest.mark.parametrize("command", ["verify", "stats", "index"])
def test_without_ray_it_is_named(data_set, command):
    before = files_of(data_set)
    code, words = run(command, data_set, "--executor", "ray")
    assert (code, "needs ray: pip install 'grpo_stream[ray]'" in words) == (2, True)
    code, words = run(command, data_set, "--ray-address", "auto")
    assert (code, "goes with --executor ray" in words) == (2, True)
    assert files_of(data_set) == before


def test_in_a_bucket(built, bucket):
    pytest.importorskip("obstore")
    store = open_store(f"{bucket}/set")
    for name, data in files_of(built).items():
        store.write(name, data)
    before = store.walk()
    for number in (3, 1):
        assert part("stats", f"{bucket}/set", number)[0] == 0
    code, words = part("stats", f"{bucket}/set", 2)
    assert (code, words) == run("stats", built)
    assert part("verify", f"{bucket}/set", 1, 1, "--parts-at", f"{bucket}/kept")[0] == 0
    left = [name for name in store.walk() if name not in before]
    assert all(name.startswith("_parts/stats/") for name in left)
