"""Every shape of data that people have, built by the command: the right places, or a question."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from grpo_stream.images import decode
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.tar import iter_samples
from grpo_stream.storage.store import LocalStore
from grpo_stream.targets import WANTED_FIELD, centre_of, read_shape, read_target
from shard_builder.cli import main
from shard_builder.datasets.judge_reading import reading_lines

CASES = Path(__file__).parent / "cases"
NAMES = sorted(path.parent.name for path in CASES.glob("*/expected.json"))
MAX_PIXELS_OFF = 1.5
MAX_COLOUR_OFF = 60  # how far a JPEG may move a colour, over three channels
SAYS_READING = ("--coords", "--box-format", "look like")


def plain(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    shutil.copytree(CASES / "images", folder / "images")
    return folder


def run_case(name, root, expected, monkeypatch):
    """Builds a case in a copy; gives the exit code and the folder of the data set."""
    work = root / name
    shutil.copytree(CASES / name, work, dirs_exist_ok=True)
    for path in work.rglob("*.json*"):
        text = path.read_text()
        if "{{FOLDER}}" in text:
            path.write_text(text.replace("{{FOLDER}}", root.as_posix()))
    monkeypatch.chdir(work)
    if expected["tool"] == "index":
        out = work / expected["inputs"][0]
        return main(["index", str(out), *expected["command"]]), out
    words = ["build", *expected["inputs"], "--images-root", expected["images_root"]]
    more = ["--out", "out", "--workers", "1", "--check", "header", *expected["command"]]
    return main([*words, *more]), work / "out"


def samples_of(folder):
    found = []
    for shard in Manifest.load(LocalStore(folder)).shards:
        with (folder / shard.name).open("rb") as file:
            found += list(iter_samples(file, shard.name))
    return found


def check_sample(sample, record):
    """A sample's place and picture are those that the record means."""
    factors = [o / s for o, s in zip(sample.original_size, sample.size, strict=True)]
    found = [number * factors[i % 2] for i, number in enumerate(sample.solution)]
    wanted = [record["solution"], *record.get("solution_also", ())]
    near = [pytest.approx(one, abs=MAX_PIXELS_OFF) for one in wanted if len(one) == len(found)]
    assert any(found == one for one in near), (found, wanted)
    assert list(sample.original_size) == record["size"]
    image = Image.fromarray(decode(sample.image))
    assert image.size == sample.size
    centre = centre_of(read_shape(sample.solution))
    x, y = centre.x, centre.y
    seen: Any = image.getpixel((int(x), int(y)))
    assert sum(abs(a - b) for a, b in zip(seen, record["colour"], strict=True)) <= MAX_COLOUR_OFF
    stored = Image.open(io.BytesIO(sample.image))
    assert stored.size == sample.size  # upright as it is stored


@pytest.mark.parametrize("name", NAMES)
def test_field(name, root, monkeypatch, capsys):
    expected = json.loads((CASES / name / "expected.json").read_text())
    if any(word.startswith("datasets:") for word in expected["inputs"]):
        pytest.importorskip("datasets")
    code, out = run_case(name, root, expected, monkeypatch)
    captured = capsys.readouterr()
    if expected["set"] == "must_ask" or code == 2:
        assert code == 2, captured.err
        assert expected["set"] == "must_ask" or "ask" in expected["also_fine"], captured.err
        assert any(words in captured.err for words in SAYS_READING)
        assert not list(out.rglob("manifest.json"))
        return
    assert code == 0, captured.err
    samples = {plain(sample.prompt): sample for sample in samples_of(out)}
    for record in expected["records"]:
        names = (record["prompt"], *record.get("prompt_also", ()))
        sample = next((samples.pop(plain(n)) for n in names if plain(n) in samples), None)
        if record["reading"] == "reject":
            assert sample is None, record["prompt"]
        elif record["reading"] == "refusal":
            assert sample is not None, record["prompt"]
            assert read_target(sample.solutions, sample.extra[WANTED_FIELD]).is_absent
        else:
            assert sample is not None, record["prompt"]
            check_sample(sample, record)
    assert not samples
    if expected["tool"] == "build":
        assert "reading " in captured.out
        num_absent = sum(record["reading"] == "refusal" for record in expected["records"])
        if num_absent:
            words = f"osworld: {num_absent} records of what is not there"
            assert words in captured.out
            assert words in "\n".join(reading_lines(Manifest.load(LocalStore(out))))
