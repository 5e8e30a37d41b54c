import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from grpo_stream.boxes import Size
from grpo_stream.grounding.evaluation.evaluation_files import write_run
from grpo_stream.grounding.evaluation.evaluation_metrics import evaluation_figures
from grpo_stream.grounding.scores import score_answer
from grpo_stream.stream.ordered_reader import read_at
from grpo_stream.stream.sources import ShardSource
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.models.processor import load_processor
from launch import phases as line
from launch.make_scenes import ALL_WORDS, QUESTION_KINDS, write_set
from shard_builder.cli import main as shard_builder
from tests.launch.support import ROOT, load_script

quickstart = load_script("quickstart")
pretrain = load_script("pretrain")


def test_every_phase_is_a_command_that_exists_and_ends_in_one_file(tmp_path):
    phases = list(quickstart.phases(tmp_path, 0, "accuracy_reward_coord", 2))
    assert [phase.name for phase in phases] == [
        "scenes",
        "shards",
        "evaluation before",
        "grpo",
        "control",
        "evaluation after",
        "evaluation of the control",
    ]
    check_phases(phases)


def test_pretraining_too(tmp_path):
    check_phases(pretrain.phases(tmp_path, 0))


def check_phases(phases):
    """Each has a file of its own, and what it runs and reads of this project is there."""
    phases = list(phases)
    results = [phase.result for phase in phases]
    assert len(set(results)) == len(results)
    for word in (word for phase in phases for words in phase.commands for word in words):
        if word.startswith(("launch/", f"{ROOT}/")):
            assert Path(ROOT, word).exists()


def test_every_split_and_every_run_draws_from_a_seed_of_its_own():
    splits = [*quickstart.SPLITS.values(), *pretrain.SPLITS.values()]
    offsets = [offset for _, _, offset in splits]
    assert len(set(offsets)) == len(offsets)
    assert max(offsets) < 10  # seeds are 10 * seed + offset


def test_the_control_differs_in_its_rewards_alone(tmp_path):
    phases = quickstart.phases(tmp_path, 0, "accuracy_reward_coord", 2)
    grpo, control = (phase for phase in phases if phase.name in ("grpo", "control"))
    pairs = zip(grpo.commands[0], control.commands[0], strict=True)
    assert [pair for pair in pairs if pair[0] != pair[1]] == [
        (str(tmp_path / "grpo"), str(tmp_path / "control")),
        ("accuracy_reward_coord", quickstart.CONTROL),
    ]


def test_the_policy_is_small_and_of_the_real_architecture():
    files = list(quickstart.POLICY.iterdir())
    assert sum(file.stat().st_size for file in files) < 3_000_000
    model = load_policy(quickstart.POLICY, dtype="auto")
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    tokenizer = load_processor(quickstart.POLICY).tokenizer
    for words in ALL_WORDS:  # new combinations too: a token for each word
        assert len(tokenizer(f"Click on the {words}")["input_ids"]) == 6


def test_the_grpo_phase_uses_all_completions_whatever_the_ranks(tmp_path):
    for num_ranks in (1, 2):
        phases = quickstart.phases(tmp_path, 0, "accuracy_reward_coord", num_ranks)
        (grpo,) = [phase for phase in phases if phase.name == "grpo"]
        (words,) = grpo.commands
        per_device = int(words[words.index("--per-device-train-batch-size") + 1])
        assert per_device * num_ranks == 128
        assert words[words.index("--num_gpus") + 1] == str(num_ranks)


def test_flags_are_written_out():
    assert line.command(["a", "b"], some_flag=3, out=Path("x")) == [
        "a",
        "b",
        "--some-flag",
        "3",
        "--out",
        "x",
    ]


def test_a_failing_command_says_so(capfd):
    assert not line.run([sys.executable, "-c", "raise SystemExit(7)"], 1)
    assert "exit code 7" in capfd.readouterr().err


def test_a_working_command_is_shown_first(capfd):
    assert line.run([sys.executable, "-c", "print('done')"], 1)
    shown, done = capfd.readouterr().out.splitlines()
    assert shown.startswith("$ ")
    assert done == "done"


def test_a_phase_that_is_up_to_date_is_skipped(tmp_path, monkeypatch, capsys):
    result = tmp_path / "made"
    count = f"import pathlib; p = pathlib.Path({str(result)!r}); p.open('a').write('x')"
    phase = line.Phase("count", [[sys.executable, "-c", count]], result)
    monkeypatch.setattr(quickstart, "phases", lambda *_: iter([phase]))
    monkeypatch.setattr(quickstart, "report", lambda *_: None)
    monkeypatch.setattr(quickstart, "_num_gpus", lambda: 1)
    for _ in range(2):
        assert quickstart.main(["--out", str(tmp_path)]) == 0
    assert result.read_text() == "x"
    assert "count: up to date" in capsys.readouterr().out
    monkeypatch.setattr(line, "code_fingerprint", lambda: "other code")
    assert quickstart.main(["--out", str(tmp_path)]) == 0
    assert result.read_text() == "xx"


def test_a_phase_without_its_file_has_failed(tmp_path, monkeypatch, capsys):
    phase = line.Phase("empty", [[sys.executable, "-c", ""]], tmp_path / "never")
    monkeypatch.setattr(quickstart, "phases", lambda *_: iter([phase]))
    monkeypatch.setattr(quickstart, "_num_gpus", lambda: 1)
    assert quickstart.main(["--out", str(tmp_path)]) == 1
    assert "ended without" in capsys.readouterr().err
    assert not (tmp_path / "phases/empty.json").exists()


def test_ending_the_script_ends_what_it_started(tmp_path):
    mark = tmp_path / "pid"
    child = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = (
        "import sys; from pathlib import Path; from launch.phases import Phase, run_phases;"
        f"phase = Phase('child', [[sys.executable, '-c', {child!r}]], Path('never'));"
        f"run_phases([phase], Path({str(tmp_path)!r}))"
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
    write_set(tmp_path / "raw", "test", 8, 4, quiet=True)
    words = ["build", tmp_path / "raw/records.json", "--images-root", tmp_path / "raw", "--out"]
    assert shard_builder([str(word) for word in [*words, tmp_path / "shards/test", "--quiet"]]) == 0
    source = ShardSource(str(tmp_path / "shards/test"))
    samples = [read_at(source, ordinal) for ordinal in range(24)]
    hits = {"before": (2, 4, 0), "after_control": (2, 2, 0), "after": (6, 4, 1)}
    for name, numbers in hits.items():
        left = dict(zip(QUESTION_KINDS, numbers, strict=True))
        answers = []
        for sample in samples:
            kind = sample.extra["question_kind"]
            left[kind] -= 1
            answers.append(
                score_answer(
                    "(8, 8)",
                    [0, 0, 16, 16] if left[kind] >= 0 else [16, 16, 32, 32],
                    key=sample.key,
                    prompt=sample.prompt,
                    scales=Size(112, 112),
                    model_size=Size(112, 112),
                    answer_frame="model",
                    image=sample.key,
                    fields={"question_kind": kind},
                )
            )
        figures = evaluation_figures(answers, ["question_kind"], asks_boxes=False)
        write_run(tmp_path / name, figures, answers, "")
    log = [{"step": n, "reward": n / 10, "frac_reward_zero_std": 0.1} for n in range(1, 6)]
    for name in ("grpo", "control"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return tmp_path


def test_report_and_metrics(finished, capsys):
    quickstart.report(finished, 3, "accuracy_reward_coord", {"grpo": 2.0, "scenes": 1.0})
    metrics = json.loads((finished / "report/metrics.json").read_text())
    assert metrics["accuracy"] == {
        "before": {"known words": 0.25, "new words": 0.5, "swapped": 0.0},
        "shuffled": {"known words": 0.25, "new words": 0.25, "swapped": 0.0},
        "after": {"known words": 0.75, "new words": 0.5, "swapped": 0.125},
    }
    assert metrics["num_held_out"] == 24
    assert metrics["seconds"] == {"grpo": 2.0, "scenes": 1.0}
    assert metrics["seed"] == 3
    assert metrics["versions"]["torch"]
    page = (finished / "report/index.html").read_text()
    assert page.count("<img ") == quickstart.NUM_PICTURES
    assert "Reward while training" in page
    for words in quickstart.PARTS.values():
        assert words in page
    assert "index.html" in capsys.readouterr().out
