"""What the command says of readings and of what it leaves out, and where it keeps it."""

import json
from typing import Any

import pytest

from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore
from shard_builder.cli import main
from tests.shards.support import image_bytes, tar_of

GOOD = {"image": "a.png", "prompt": "Click", "solution": [10, 5, 30, 15]}
NUMBERED: list[dict[str, Any]] = [
    GOOD
    | {"prompt": f"Click {n}", "solution": [10 + 100 * n, 5 + 90 * n, 90 + 100 * n, 99 + 90 * n]}
    for n in range(10)
]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(image_bytes((1100, 1050)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(raw, rows, *more):
    (raw / "data.json").write_text(json.dumps(rows))
    words = ["data.json", "--images-root", ".", "--out", "out", "--workers", "1"]
    return main(["build", *words, *more])


def lists(raw):
    return [json.loads(line) for line in (raw / "out" / "rejects.jsonl").read_text().splitlines()]


def test_the_reading_is_in_the_manifest_in_stats_and_in_show(raw, capsys):
    assert build(raw, NUMBERED, "--progress", "json") == 0
    facts = json.loads(capsys.readouterr().out)
    (reading,) = facts["readings"]
    assert (reading["box_format"], reading["coords"]) == ("xyxy", "pixels")
    assert (reading["num_fitting"], reading["num_records"]) == (10, 10)
    settings = Manifest.load(LocalStore("out")).settings
    assert settings["readings"] == [reading | {"input": "data.json"}]
    assert main(["stats", "out", "--quiet"]) == 0
    line = "data.json, json, solution: xyxy in pixels (defined; 10 of 10 fit, 10 records)"
    assert line in capsys.readouterr().out
    assert main(["show", "out", "--quiet"]) == 0
    assert line in (raw / "show" / "index.html").read_text()


def test_an_undecided_reading_stops_before_anything_is_written(raw, capsys):
    rows = [{"img_filename": "a.png", "instruction": f"{n}", "bbox": [10, 5, 30, 15]}
            for n in range(3)]  # fmt: skip
    for more in ([], ["--dry-run"], ["--quiet"], ["--progress", "json"]):
        assert build(raw, rows, *more) == 2
        said = capsys.readouterr().err
        assert "--box-format xywh" in said
        assert "--accept-reading" in said
    assert not (raw / "out").exists()
    assert build(raw, rows, "--accept-reading", "corners") == 2
    assert "must be one of xyxy-pixels" in capsys.readouterr().err
    assert build(raw, rows, "--accept-reading", "xywh-pixels") == 0
    assert "x, y, width, height in pixels (as accepted" in capsys.readouterr().out
    assert build(raw, rows, "--box-format", "xyxy", "--coords", "pixels", "--overwrite") == 0
    assert "(as the flags say" in capsys.readouterr().out


def test_too_many_rejects_end_without_a_set_but_with_the_list(raw, capsys):
    bad: list[dict[str, Any]] = [{"image": "a.png", "prompt": f"{n}"} for n in range(4)]
    bad += [GOOD | {"image": f"none{n}.png"} for n in range(9)]
    assert build(raw, [*NUMBERED, *bad]) == 1
    said = capsys.readouterr().err
    assert "13 of 23 records are left out (57%), more than --max-reject-share 0.5" in said
    assert "image_not_found 9: for example data.json record 14: 'none0.png'" in said
    assert "solution_missing 4 (see --solution-key): for example data.json record 10" in said
    assert len(lists(raw)) == 13
    assert {path.name for path in (raw / "out").iterdir()} == {"rejects.jsonl", "warnings.jsonl"}
    assert build(raw, [*NUMBERED, *bad], "--max-reject-share", "0.6", "--quiet") == 0
    assert capsys.readouterr().err.startswith("warning: 13 of 23 records are left out (57%)")


def test_no_hint_names_a_flag_that_was_given(raw, capsys):
    rows = [GOOD | {"solution": [0.1, 0.2, 0.3, 0.4], "text": "Click"}] * 2
    assert build(raw, rows, "--coords", "pixels", "--box-format", "xyxy") == 1
    said = capsys.readouterr().err
    assert "solution_looks_like_unit 2" in said
    assert "--coords" not in said
    assert build(raw, [GOOD], "--solution-key", "box") == 1
    said = capsys.readouterr().err
    assert "solution_missing" in said
    assert "--solution-key" not in said
    assert "no field 'box' in ['image', 'prompt', 'solution']" in said


def test_all_rejected_leaves_the_list(raw, capsys):
    assert build(raw, [GOOD | {"image": "none.png"}] * 3) == 1
    assert (
        "no_samples: all of 3 records are rejected (image_not_found 3)" in capsys.readouterr().err
    )
    assert [line["cause"] for line in lists(raw)] == ["image_not_found"] * 3
    assert build(raw, NUMBERED) == 0  # nothing is in the way


@pytest.mark.parametrize("share", ["-0.1", "1.5"])
def test_shares_that_are_none(raw, capsys, share):
    assert build(raw, NUMBERED, "--max-reject-share", share) == 2
    assert "--max-reject-share" in capsys.readouterr().err


def test_a_field_that_json_cannot_hold_is_named(raw, capsys):
    assert build(raw, [*NUMBERED, GOOD | {"score": float("nan"), "own": 1}]) == 0
    (line,) = lists(raw)
    assert line["cause"] == "fields_not_json"
    assert line["detail"].startswith("field 'score': ")


def test_the_placeholder_is_no_word_of_the_question(raw):
    assert build(raw, [GOOD | {"prompt": "<image>\nClick OK"}]) == 0
    assert main(["show", "out", "--quiet"]) == 0
    page = (raw / "show" / "index.html").read_text()
    assert "Click OK" in page
    assert "&lt;image&gt;" not in page


def foreign(solution, num=12):
    meta = {"prompt": "Click", "solution": solution}
    return tar_of([
        member for n in range(num)
        for member in ((f"{n}.png", image_bytes((200, 100))),
                       (f"{n}.json", json.dumps(meta).encode()))
    ])  # fmt: skip


def test_tars_of_others_that_are_no_pixels(raw, capsys):
    (raw / "tars").mkdir()
    (raw / "tars" / "a.tar").write_bytes(foreign([0.1, 0.2, 0.3, 0.4]))
    assert main(["index", "tars", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "its boxes look like x1, y1, x2, y2 in 0-1: 12 of 12 fit" in said
    assert "--coords unit" in said
    assert not (raw / "tars" / "manifest.json").exists()
    assert main(["index", "tars", "--quiet", "--accept-reading", "xywh-unit"]) == 2
    assert main(["index", "tars", "--quiet", "--accept-reading", "xyxy-pixels"]) == 0
    assert main(["verify", "tars", "--quiet"]) == 0  # it was accepted
    manifest = json.loads((raw / "tars" / "manifest.json").read_text())
    del manifest["settings"]["readings"]  # as an earlier version has indexed it
    (raw / "tars" / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(["verify", "tars", "--quiet"]) == 1
    assert "its boxes look like x1, y1, x2, y2 in 0-1" in capsys.readouterr().err


def test_tars_of_others_in_pixels(raw, capsys):
    (raw / "tars").mkdir()
    (raw / "tars" / "a.tar").write_bytes(foreign([10, 20, 150, 90]))
    assert main(["index", "tars", "--quiet"]) == 0
    assert main(["verify", "tars", "--quiet"]) == 0
    assert main(["stats", "tars", "--quiet"]) == 0
    assert "xyxy in pixels (defined; 12 of 12 fit" in capsys.readouterr().out
