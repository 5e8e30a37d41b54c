import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import pytest

from shard_builder import build_command
from shard_builder.build import build as build_module
from shard_builder.cli import main
from tests.shards.support import image_bytes


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes((60, 40)))
    rows = [
        {"image": "a.png", "prompt": "Click OK", "solution": [1, 2, 13, 12]},
        {"image": "a.png", "prompt": "Point", "solution": [5, 6]},
        {"image": "absent.png", "prompt": "Click", "solution": [1, 2, 3, 4]},
    ]
    (tmp_path / "records.json").write_text(json.dumps(rows))
    return tmp_path


def build_words(raw, *more):
    words = ["build", raw / "records.json", "--images-root", raw, "--out", raw / "out", *more]
    return [str(word) for word in words]


def test_build_verify_stats(raw, capsys):
    assert main(build_words(raw)) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    reading = "json: solution: x1, y1, x2, y2 in pixels (as the format defines; 2 of 2 boxes and"
    assert (lines[0], lines[2]) == ("2 samples of 3 records", "rejected: 1 (image_not_found 1)")
    assert reading in lines[1]
    assert lines[-1] == "warning: 1 of 3 records are left out (33%): image_not_found 1"
    assert "records/s" in captured.err
    assert main(["verify", str(raw / "out"), "--quiet"]) == 0
    assert "sound: 2 samples in 1 shards" in capsys.readouterr().out
    assert main(["stats", str(raw / "out"), "--quiet"]) == 0
    table = capsys.readouterr().out
    assert "samples             2 in 1 shards" in table
    assert "60x40" in table
    assert "image_not_found" in table
    assert main(["stats", str(raw / "out"), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 2
    assert main(["show", str(raw / "out"), "--quiet", "--out", str(raw / "show")]) == 0
    assert "2 samples" in capsys.readouterr().out
    assert {path.name for path in (raw / "show").iterdir()} == {"index.html", "contact_sheet.png"}
    (raw / "out" / "manifest.json").unlink()
    assert main(["index", str(raw / "out"), "--quiet"]) == 0
    assert "indexed: 2 samples in 1 shards" in capsys.readouterr().out


def test_json_lines_for_batch_jobs(raw, capsys):
    assert main(build_words(raw, "--progress", "json", "--workers", "1")) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert [line["phase"] for line in lines][:1] == ["read"]
    last = [line for line in lines if line["phase"] == "build"][-1]
    assert (last["num_total"], last["num_records"], last["num_rejects"]) == (3, 3, 1)
    facts = json.loads(captured.out)
    assert (facts["num_samples"], facts["rejects"]) == (2, {"image_not_found": 1})
    assert facts["sets"][""]["num_shards"] == 1
    assert main(build_words(raw, "--progress", "json")) == 0
    assert json.loads(capsys.readouterr().out)["is_new"] is False


def test_quiet_is_quiet(raw, capsys):
    rows = json.loads((raw / "records.json").read_text())
    (raw / "records.json").write_text(json.dumps(rows[:2]))
    assert main(build_words(raw, "--quiet")) == 0
    assert capsys.readouterr() == ("", "")


def test_what_is_left_out_is_said_even_when_quiet(raw, capsys):
    assert main(build_words(raw, "--quiet")) == 0
    warning = "warning: 1 of 3 records are left out (33%): image_not_found 1\n"
    assert capsys.readouterr() == ("", warning)


def test_verify_names_the_bad_shard_and_exits_with_1(raw, capsys):
    main(build_words(raw, "--quiet"))
    path = raw / "out" / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[::-1])
    assert main(["verify", str(raw / "out"), "--quiet"]) == 1
    assert "shard-000000.tar: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--on-error", "fail"], 1, "record 2: image_not_found"),
        (["--max-rejects", "0"], 1, "1 rejects, at most 0"),
        (["--max-rejects", "-1"], 2, "--max-rejects=-1"),
        pytest.param(
            ["--out", "https://host/set"],
            2,
            "web servers take no uploads",
            marks=pytest.mark.skipif(find_spec("obstore") is None, reason="no obstore"),
        ),
        (["--images-root", "absent"], 2, "--images-root='absent'"),
        (["--prompt-key", "text"], 1, "prompt_missing"),
        (["--samples-per-shard", "0"], 2, "--samples-per-shard=0"),
        (["--max-pixels", "0"], 2, "--max-pixels=0: must be at least min_pixels=3136"),
        (["--patch-multiple", "100000"], 2, "--patch-multiple=100000: must be 1 to 1000"),
        (["--min-pixels", "-1"], 2, "--max-pixels=1003520: must be at least min_pixels=-1"),
        (["--out", "pipe:cat"], 2, "--out='pipe:cat': must be a folder"),
    ],
)
def test_exit_codes(raw, capsys, more, code, message):
    assert main(build_words(raw, "--quiet", *more)) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["build"],
        ["verify"],
        ["nonsense"],
        ["build", "a", "--where", "split"],
        ["build", "a", "--max-shard-bytes", "many"],
    ],
)
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


@pytest.mark.parametrize("command", ["verify", "stats"])
def test_no_data_set(tmp_path, capsys, command):
    assert main([command, str(tmp_path)]) == 1
    assert "no manifest, no data set" in capsys.readouterr().err
    assert main([command, "pipe:cat"]) == 2


def test_letters_that_the_terminal_has_not(raw):
    out = raw / "zie\u017c \U0001f600"
    words = build_words(raw, "--out", str(out))
    command = [sys.executable, "-m", "tools.shard_builder", *words]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "zie\\u017c \\U0001f600" in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "device: make room in --out and"),
        (OSError(errno.EIO, "Input/output error"), 1, "shard-builder: [Errno 5] Input/output"),
        (KeyboardInterrupt(), 130, "stopped; the same command resumes from there"),
    ],
)
def test_what_ends_a_build(raw, capsys, monkeypatch, error, code, message):
    def end(*_):
        raise error

    monkeypatch.setattr(build_command, "build", end)
    assert main(build_words(raw, "--quiet")) == code
    assert message in capsys.readouterr().err


def test_sigterm_cleans_up(raw, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(raw / "temporary"))
    (raw / "temporary").mkdir()
    found = []

    def end(*_):
        found.extend((raw / "temporary").iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(build_module, "run_chunks", end)
    before = signal.getsignal(signal.SIGTERM)
    assert main(build_words(raw, "--quiet", "--workers", "1")) == 143
    assert "stopped; the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert found
    assert not list((raw / "temporary").iterdir())


def test_sizes_have_units(raw):
    assert main(build_words(raw, "--quiet", "--max-shard-bytes", "1KiB")) == 0
    settings = json.loads((raw / "out" / "manifest.json").read_bytes())["settings"]
    assert settings["shard_limits"]["max_bytes"] == 1024


def test_help_tells_the_exit_codes():
    for words in ([], ["build"], ["verify"], ["stats"]):
        command = [sys.executable, "-m", "tools.shard_builder", *words, "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "exit codes:\n  0    fine" in text


def test_sets_of_sets(raw, capsys):
    main(build_words(raw, "--quiet"))
    out = raw / "out"
    assert main(["head", str(out), "--num-samples", "1", "--out", str(raw / "one"), "--quiet"]) == 0
    assert f"1 samples, 1 shards in {raw / 'one'}" in capsys.readouterr().out
    merge = ["merge", out, raw / "one", "--out", raw / "both", "--quiet"]
    assert main([str(word) for word in merge]) == 2
    assert "--prefix" in capsys.readouterr().err
    assert not (raw / "both").exists()
    assert main([str(word) for word in (*merge, "--prefix", "a-", "--prefix", "b-")]) == 0
    assert "3 samples, 2 shards" in capsys.readouterr().out
    split = ["split", raw / "both", "--out", raw / "parts", "--progress", "json"]
    assert main([str(word) for word in split]) == 2
    assert "name at least one part" in capsys.readouterr().err
    assert main([str(word) for word in (*split, "--split", "val=0.5")]) == 2  # it is one image
    assert "got none of the images" in capsys.readouterr().err
    assert not [path for path in (raw / "parts").rglob("*") if path.is_file()]
