import errno
import json
import os
import subprocess
import sys

import pytest

from tests.launch.support import ROOT, load_script
from tests.train.support import TASK_TEXTS, write_shapes

script = load_script("evaluate")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    from grpo_stream.train.models.tiny import make_tiny_policy

    return make_tiny_policy(tmp_path_factory.mktemp("tiny"), TASK_TEXTS)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), 13)


@pytest.fixture(scope="module")
def words(policy, shapes):
    """A command line without the report's folder."""
    return [
        *("--model", str(policy), "--shards", str(shapes.shards), "--by", "colour", "shape"),
        *("--batch-size", "3", "--max_completion_length", "4", "--num-resamples", "200"),
        *("--device", "cpu", "--num-pictures", "1"),
    ]


def run_ranks(flags):
    """The script on two ranks, as it starts them itself."""
    with pytest.MonkeyPatch.context() as patch:
        told: list[list[str]] = []
        patch.setattr(os, "execv", lambda _, argv: told.append(argv))
        script.start_ranks([*flags, "--num-processes", "2"], 2)
    (command,) = told
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


WAYS = {"zoom": ["--zoom", "2"], "vote": ["--num-samples", "3", "--temperature", "0.9"]}


@pytest.mark.slow(reason="starts two ranks, twice")
@pytest.mark.multiprocess
@pytest.mark.parametrize("way", WAYS)
def test_closer_looks_and_votes_are_the_same_on_two_ranks(words, way, tmp_path, capsys):
    flags = [*words, *WAYS[way]]
    assert script.main([*flags, "--report", str(tmp_path / "one")]) == 0
    done = run_ranks([*flags, "--report", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    (one, answers), (two, others) = read(tmp_path / "one"), read(tmp_path / "two")
    assert answers == others
    assert one["figures"] == two["figures"]
    assert one["comparisons"] == two["comparisons"]
    said = capsys.readouterr().out
    if way == "zoom":
        assert [one["model"] for one in one["comparisons"]] == ["the first look"]
        assert "compared with the first look" in said
    else:
        assert {"pass_1", "pass_2", "pass_3"} <= set(one["figures"])
        assert "pass@3" in said
        assert all(len(json.loads(line)["sampled"]) == 3 for line in answers)


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    """The report of one process."""
    report = tmp_path_factory.mktemp("alone") / "report"
    assert script.main([*words, "--report", str(report)]) == 0
    return report


def read(report):
    results = json.loads((report / "results.json").read_text())
    return results, (report / "answers.jsonl").read_text().splitlines()


def test_every_sample_is_answered_once_and_figures_are_told(alone, shapes, capsys):
    results, answers = read(alone)
    assert [json.loads(line)["key"] for line in answers] == [f"{n:06d}" for n in range(13)]
    assert results["figures"]["num_samples"] == 13
    assert list(results["slices"]) == ["size of target", "colour", "shape"]
    assert results["task"]["answer_frame"] == "model"
    assert results["settings"]["world_size"] == 1
    assert results["versions"]["torch"]
    page = (alone / "index.html").read_text()
    assert "Evaluation of" in page
    assert page.count("<article") >= 2


@pytest.mark.multiprocess
@pytest.mark.slow(reason="an evaluation on two ranks that import all it needs")
def test_two_ranks_give_the_same_figures(alone, words, tmp_path):
    report = tmp_path / "report"
    done = run_ranks([*words, "--report", str(report)])
    assert done.returncode == 0, done.stderr
    (here, answers), (there, others) = read(report), read(alone)
    assert answers == others
    for name in ("figures", "slices", "failures", "data"):
        assert here[name] == there[name]
    assert here["settings"]["world_size"] == 2
    assert done.stdout.count("point accuracy") == 1  # rank 0 alone speaks
    assert "size of target" in done.stdout


def test_records_of_other_formats_and_a_comparison(alone, words, shapes, tmp_path, capsys):
    records = [
        {
            "img_filename": record["image"],
            "instruction": record["prompt"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "data_type": record["shape"],
        }
        for record in shapes.records
        for x1, y1, x2, y2 in [record["solution"]]
    ]
    data = tmp_path / "screenspot_web.json"
    data.write_text(json.dumps(records))
    source = ["--json", str(data), "--images-root", str(shapes.images), "--format", "screenspot"]
    settings = [*words[:2], *words[7:], *source]  # of no shards, by no field
    first = tmp_path / "first"
    assert script.main([*settings, "--report", str(first)]) == 0
    found, expected = read(first)[0], read(alone)[0]
    assert found["figures"] == expected["figures"]
    assert list(found["slices"]) == ["size of target", "data_type"]
    second = [*settings, "--report", str(tmp_path / "second"), "--compare", str(first)]
    capsys.readouterr()
    assert script.main(second) == 0
    (comparison,) = read(tmp_path / "second")[0]["comparisons"]
    assert comparison["differences"]["point_accuracy"]["value"] == 0
    assert "compared with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words_said"),
    [
        (["--by", "color"], "by='color': is no field of the samples; they have colour, shape"),
        (["--report", "no/such/report"], "there is no folder"),
        (["--top-k", "1"], "top_k='1': is no setting"),
        (["--temperature", "1"], "add num_samples, for example 8"),
        (["--num-samples", "4", "--temperature", "0"], "temperature=0.0: must be above 0"),
        (["--num-samples", "0"], "num_samples=0: must be at least 1"),
        (["--zoom", "1"], "zoom=1.0: must be above 1, for example 3"),
        (["--zoom", "2", "--num-samples", "4"], "leave out num_samples"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(words, changes, words_said, tmp_path, capsys):
    assert script.main([*words, "--report", str(tmp_path / "report"), *changes]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert words_said in said[0]


def test_a_full_disk_is_one_line(words, tmp_path, monkeypatch, capsys):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report/index.html")

    monkeypatch.setattr(script, "run_evaluation", full)
    assert script.main([*words, "--report", str(tmp_path / "report")]) == 1
    assert capsys.readouterr().err == (
        "error: report/index.html: No space left on device; make room and start the same command "
        "again; older results are as they were\n"
    )


def test_the_flags_of_a_launcher_and_of_older_commands_are_understood(tmp_path, capsys):
    old = ["--local_rank=0", "--model_name_or_path", "no/such/model", "--shards", "x"]
    assert script.main([*old, "--report", str(tmp_path / "r")]) == 2
    assert "no/such/model" in capsys.readouterr().err


def test_ranks_are_started_by_torchs_launcher(monkeypatch):
    told: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, argv: told.append(argv))
    for flags in (["--num_processes", "4"], ["--num-processes=4"]):
        script.start_ranks(["--model", "m", *flags, "--report", "r"], 4)
    assert told[0] == told[1]
    assert told[0][:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert told[0][-4:] == ["--model", "m", "--report", "r"]
    assert "--nproc-per-node=4" in told[0]
