"""Records of one, two and no images: built, checked, shown, cut, streamed."""

import json

import pytest

from grpo_stream.shards.images_field import is_text_only
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.tar import iter_samples
from grpo_stream.storage.store import LocalStore
from shard_builder.cli import main
from tests.shards.support import image_bytes

RECORDS = [
    {"image": "a.png", "prompt": "<image>Click OK", "solution": [1, 2, 3, 4]},
    {
        "image": ["a.png", "b.png"],
        "prompt": "In <image> and <image>",
        "solution": [1, 2, 9, 9],
        "solution_images": [1],
    },
    {"image": [], "prompt": "What is 2 + 3?", "answer": "5"},
    {"image": None, "prompt": "Where is the door?", "solution": [], "solution_wanted": "none"},
    {"prompt": "a forgotten image", "solution": [1, 2]},
]


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes((8, 6)))
    (tmp_path / "b.png").write_bytes(image_bytes((20, 10)))
    (tmp_path / "records.json").write_text(json.dumps(RECORDS))
    return tmp_path


def run(*words):
    assert main([str(word) for word in words]) == 0


def test_all_that_the_command_does(raw, capsys):
    out = raw / "set"
    places = ("--images-root", raw, "--out", out, "--max-reject-share", "0.3")
    run("build", raw / "records.json", *places, "--several", "keep")
    manifest = Manifest.load(LocalStore(out))
    assert manifest.totals["num_multi_image"] == 1
    assert manifest.totals["num_text_only"] == 2
    assert manifest.rejects == {"image_missing": 1}
    for words in (("verify", out), ("index", out), ("show", out, "--out", raw / "shown")):
        run(*words)
    capsys.readouterr()
    run("stats", out)
    assert "2 without images" in capsys.readouterr().out
    run("head", out, "--num-samples", 3, "--out", raw / "cut")
    assert Manifest.load(LocalStore(raw / "cut")).totals["num_text_only"] == 1
    with (raw / "cut" / "shard-000000.tar").open("rb") as file:
        one, two, none = iter_samples(file, "shard-000000.tar")
    assert [one.prompt, two.prompt] == ["Click OK", "In <image> and <image>"]
    assert two.solution_images == (1,)
    assert is_text_only(none.meta)
    assert none.extra == {"image": [], "answer": "5"}


def test_without_being_asked_for(raw, capsys):
    words = ("build", raw / "records.json", "--images-root", raw, "--out", raw / "set")
    assert main([str(word) for word in words]) != 0
    assert "--several keep" in capsys.readouterr().err
