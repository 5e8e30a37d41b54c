import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from grpo_stream.boxes import Size
from grpo_stream.grounding.evaluation_files import write_run
from grpo_stream.grounding.evaluation_metrics import evaluation_figures
from grpo_stream.grounding.scores import score_answer
from tests.launch.support import ROOT, load_script

quickstart = load_script("quickstart")


def test_every_phase_is_a_command_that_exists_and_ends_in_one_file(tmp_path):
    phases = list(quickstart.phases(tmp_path, 0, "accuracy_reward_coord", 2))
    assert [phase.name for phase in phases] == [
        "shapes",
        "shards",
        "tiny policy",
        "cold start",
        "evaluation before",
        "grpo",
        "evaluation after",
    ]
    results = [phase.result for phase in phases]
    assert len(set(results)) == len(results)
    scripts = [word for phase in phases for words in phase.commands for word in words]
    for script in scripts:
        if script.startswith("launch/"):
            assert (ROOT / script).is_file()


def test_every_split_and_every_run_draws_from_a_seed_of_its_own():
    offsets = [offset for _, offset in quickstart.SPLITS.values()]
    assert len(set(offsets)) == len(offsets)
    assert max(offsets) < 10  # seeds are 10 * seed + offset


def test_the_grpo_phase_uses_all_completions_whatever_the_ranks(tmp_path):
    for num_ranks in (1, 2):
        phases = quickstart.phases(tmp_path, 0, "accuracy_reward_coord", num_ranks)
        (grpo,) = [phase for phase in phases if phase.name == "grpo"]
        (words,) = grpo.commands
        per_device = int(words[words.index("--per-device-train-batch-size") + 1])
        assert per_device * num_ranks == 128
        assert words[words.index("--num_gpus") + 1] == str(num_ranks)


def test_flags_are_written_out():
    assert quickstart.command(["a", "b"], some_flag=3, out=Path("x")) == [
        "a",
        "b",
        "--some-flag",
        "3",
        "--out",
        "x",
    ]


def test_a_failing_command_says_so(capfd):
    assert not quickstart.run([sys.executable, "-c", "raise SystemExit(7)"], 1)
    assert "exit code 7" in capfd.readouterr().err


def test_a_working_command_is_shown_first(capfd):
    assert quickstart.run([sys.executable, "-c", "print('done')"], 1)
    shown, done = capfd.readouterr().out.splitlines()
    assert shown.startswith("$ ")
    assert done == "done"


def test_a_phase_that_is_up_to_date_is_skipped(tmp_path, monkeypatch, capsys):
    result = tmp_path / "made"
    count = f"import pathlib; p = pathlib.Path({str(result)!r}); p.open('a').write('x')"
    phase = quickstart.Phase("count", [[sys.executable, "-c", count]], result)
    monkeypatch.setattr(quickstart, "phases", lambda *_: iter([phase]))
    monkeypatch.setattr(quickstart, "report", lambda *_: None)
    monkeypatch.setattr(quickstart, "_num_gpus", lambda: 1)
    for _ in range(2):
        assert quickstart.main(["--out", str(tmp_path)]) == 0
    assert result.read_text() == "x"
    assert "count: up to date" in capsys.readouterr().out
    monkeypatch.setattr(quickstart, "_code_fingerprint", lambda: "other code")
    assert quickstart.main(["--out", str(tmp_path)]) == 0
    assert result.read_text() == "xx"


def test_a_phase_without_its_file_has_failed(tmp_path, monkeypatch, capsys):
    phase = quickstart.Phase("empty", [[sys.executable, "-c", ""]], tmp_path / "never")
    monkeypatch.setattr(quickstart, "phases", lambda *_: iter([phase]))
    monkeypatch.setattr(quickstart, "_num_gpus", lambda: 1)
    assert quickstart.main(["--out", str(tmp_path)]) == 1
    assert "ended without" in capsys.readouterr().err
    assert not (tmp_path / "phases/empty.json").exists()


def test_ending_the_script_ends_what_it_started(tmp_path):
    mark = tmp_path / "pid"
    child = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = (
        "import signal, sys; from tests.launch.support import load_script;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        f"load_script('quickstart').run([sys.executable, '-c', {child!r}], 1)"
    )
    outer = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (mark.is_file() and mark.read_text()):
        assert outer.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    inner = psutil.Process(int(mark.read_text()))
    outer.terminate()
    assert outer.wait(timeout=60) == 143
    _gone, alive = psutil.wait_procs([inner], timeout=60)
    assert not alive


@pytest.fixture
def finished(tmp_path):
    """The files that a finished run leaves, for the page."""
    from tests.train.support import write_shapes

    shapes = write_shapes(tmp_path, 14)
    (tmp_path / "shards").rename(tmp_path / "moved")
    (tmp_path / "shards").mkdir()
    (tmp_path / "moved").rename(tmp_path / "shards/test")
    for name, num_hits in (("before", 4), ("after", 9)):
        answers = [
            score_answer(
                "(8, 8)",
                [0, 0, 16, 16] if n < num_hits else [16, 16, 32, 32],
                key=f"{n:06d}",
                prompt=record["prompt"],
                scales=Size(112, 112),
                model_size=Size(112, 112),
                answer_frame="model",
                image=str(n),
            )
            for n, record in enumerate(shapes.records)
        ]
        write_run(tmp_path / name, evaluation_figures(answers, asks_boxes=False), answers, "")
    log = [{"step": n, "reward": n / 10, "frac_reward_zero_std": 0.1} for n in range(1, 6)]
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo/trainer_state.json").write_text(json.dumps({"log_history": log}))
    return tmp_path


def test_report_and_metrics(finished, capsys):
    quickstart.report(finished, 3, "accuracy_reward_coord", {"grpo": 2.0, "cold start": 1.0})
    metrics = json.loads((finished / "report/metrics.json").read_text())
    assert metrics["accuracy_before"] == 4 / 14
    assert metrics["accuracy_after"] == 9 / 14
    assert metrics["seconds"] == {"grpo": 2.0, "cold start": 1.0}
    assert metrics["seed"] == 3
    assert metrics["versions"]["torch"]
    page = (finished / "report/index.html").read_text()
    assert page.count("<img ") == quickstart.NUM_PICTURES
    assert "Reward while training" in page
    assert "index.html" in capsys.readouterr().out
