"""What scripts do with their flags before they do anything else."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys

import pytest
from torch import distributed

from tests.launch.support import ROOT, load_script

SCRIPTS = sorted(path for path in (ROOT / "launch").glob("*.py") if "__main__" in path.read_text())
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="module")
def train():
    return load_script("train")


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A place where joining ranks fails and compiling leaves a trace; gives that place."""

    def refuse(*_, **__):
        raise AssertionError("ranks were joined")

    monkeypatch.setattr(distributed, "init_process_group", refuse)
    monkeypatch.setattr(distributed.distributed_c10d, "init_process_group", refuse)
    for name in LAUNCHER:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    compiled = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(compiled))
    ending = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = [(one, signal.getsignal(one)) for one in ending]
    yield compiled
    assert signal.set_wakeup_fd(-1) == -1
    assert [(one, signal.getsignal(one)) for one in ending] == handlers
    assert not distributed.is_initialized()
    assert not compiled.exists()


@pytest.fixture(scope="module")
def run_flags(tmp_path_factory):
    """Flags of a run that can be planned, with a file for DeepSpeed."""
    from tests.stream.support import write_numbered_set

    folder = tmp_path_factory.mktemp("flags")
    shards = write_numbered_set(folder / "shards", 24, per_shard=8)
    return [
        *("--model_name_or_path", "some/model", "--shards", str(shards)),
        *("--output_dir", str(folder / "out"), "--report_to", "none"),
        *("--per_device_train_batch_size", "4", "--num_generations", "4"),
        *("--deepspeed", str(ROOT / "ds_configs/zero3_cpu.json")),
    ]


class TestNoRanksAreJoined:
    @pytest.mark.parametrize("name", ["train", "sft", "preflight", "evaluate"])
    def test_for_help(self, name, alone, capsys):
        with pytest.raises(SystemExit) as ended:
            load_script(name).main(["--help"])
        assert ended.value.code == 0
        assert "--shards" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["train", "preflight"])
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--bogus", "1"], "error: bogus='1': is no setting"),
            (["--learning_rate", "fast"], "error: learning_rate='fast': must be a number"),
            (["--num_generations", "3"], "error: num_generations=3: must divide"),
            (["--deepspeed", "no.json"], "error: deepspeed='no.json': cannot be read"),
            (["--config", "no.yaml"], "error: config='no.yaml': is no file"),
        ],
    )
    def test_for_wrong_flags(self, name, flags, message, alone, run_flags, capsys):
        assert load_script(name).main([*run_flags, *flags]) == 2
        said = capsys.readouterr().err
        assert said.startswith(message)
        assert said.count("\n") == 1

    @pytest.mark.parametrize("launched", [False, True])
    def test_for_a_dry_run_of_one_rank(
        self, launched, alone, train, run_flags, monkeypatch, capsys
    ):
        if launched:  # as `deepspeed --num_gpus 1` has it
            for name, value in zip(LAUNCHER, ("0", "1", "0", "127.0.0.1", "29500"), strict=True):
                monkeypatch.setenv(name, value)
        assert train.main([*run_flags, "--dry-run", "--num-ranks", "8"]) == 0
        said = capsys.readouterr().out
        assert "8 prompts x 4 completions over all ranks" in said
        assert "zero3_cpu.json" in said
        assert "dry run: the settings fit together" in said

    @pytest.mark.parametrize("name", ["train", "preflight", "evaluate"])
    @pytest.mark.parametrize(
        ("environment", "missing"),
        [
            ({"WORLD_SIZE": "4"}, "RANK"),
            ({"RANK": "1"}, "WORLD_SIZE"),
            ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_PORT": "1"}, "MASTER_ADDR"),
            ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node-1"}, "MASTER_PORT"),
        ],
    )
    def test_for_half_an_environment(
        self, name, environment, missing, alone, run_flags, monkeypatch, capsys
    ):
        for one, value in environment.items():
            monkeypatch.setenv(one, value)
        flags = run_flags if name != "evaluate" else ["--model", "m", "--report", "r"]
        assert load_script(name).main(flags) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {missing}=None: is missing in the environment, beside ")


def test_help_is_quick_and_names_this_projects_settings_first():
    """Ten seconds of an idle machine; on a busy one it is the work that counts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "launch/train.py", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    titles = ("DataArguments", "RunArguments", "trl.GRPOConfig", "transformers.TrainingArguments")
    places = [done.stdout.index(f"\n{title}:") for title in titles]
    assert places == sorted(places)
    assert "Trains a policy with GRPO" in done.stdout


@pytest.mark.multiprocess
def test_a_port_in_use_is_told_as_that(run_flags):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104 - the store listens on all addresses, too
        taken.listen()
        port = str(taken.getsockname()[1])
        own = dict(zip(LAUNCHER, ("0", "2", "0", "127.0.0.1", port), strict=True))
        own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "launch/train.py", *run_flags],
            cwd=ROOT,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith(f"error: master_port='{port}': is in use on this machine")
    assert "--master_port" in last


class TestBothSpellings:
    def test_every_script_sees_to_it(self):
        ways = ("parse_args(with_dashes(", "SettingsParser(", "read_flags(", "read_flags=")
        lost = [path.name for path in SCRIPTS if not any(w in path.read_text() for w in ways)]
        assert lost == []

    @pytest.fixture(params=["_", "-"])
    def spelled(self, request):
        return lambda flag: "--" + flag.replace("-", request.param)

    def test_tiny_policy(self, spelled, monkeypatch, tmp_path):
        script, seen = load_script("tiny_policy"), []
        monkeypatch.setattr(script, "read_prompts", lambda paths: paths)
        monkeypatch.setattr(script, "task_texts", lambda _, *sizes: seen.extend(sizes))
        monkeypatch.setattr(script, "make_tiny_policy", lambda *_, **__: None)
        words = ["--json", "a.json", "--out", str(tmp_path), spelled("max-coordinate"), "56"]
        assert script.main(words) == 0
        assert seen == [56, 8]

    def test_estimate(self, spelled):
        args = load_script("estimate").parse([spelled("gpus-per-node"), "4"])
        assert args.gpus_per_node == 4

    def test_health(self, spelled, tmp_path, capsys):
        assert load_script("health").main([str(tmp_path), spelled("silent-after"), "3"]) == 1
        assert "no heartbeats" in capsys.readouterr().out

    def test_make_shapes(self, spelled, tmp_path):
        words = ["--out", str(tmp_path), spelled("num-images") + "=1", "--quiet"]
        load_script("make_shapes").main(words)
        assert len(json.loads((tmp_path / "records.json").read_text())) == 1

    def test_make_scenes(self, spelled, tmp_path):
        words = ["--out", str(tmp_path), "--split=training", spelled("num-scenes") + "=1"]
        load_script("make_scenes").main([*words, "--quiet"])
        assert len(json.loads((tmp_path / "records.json").read_text())) == 1

    def test_convert_checkpoint(self, spelled, monkeypatch):
        script, seen = load_script("convert_checkpoint"), []
        monkeypatch.setattr(
            script, "make_universal", lambda _, *, num_processes: seen.append(num_processes)
        )
        assert script.main(["--checkpoint", "c", spelled("num-processes"), "3"]) == 0
        assert seen == [3]

    def test_quickstart(self, spelled, monkeypatch, tmp_path):
        script = load_script("quickstart")
        seen: list[object] = []

        def phases(*words):
            seen.extend(words)
            return iter([])

        monkeypatch.setattr(script, "phases", phases)
        monkeypatch.setattr(script, "report", lambda *_: None)
        monkeypatch.setattr(script, "_num_gpus", lambda: 1)
        words = ["--out", str(tmp_path), spelled("reward-funcs"), "format_reward"]
        assert script.main(words) == 0
        assert seen[2] == "format_reward"

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("evaluate", ["--model", "no/such/model", "--report", "out"]),
            ("sft", ["--model-name-or-path", "no/such/model", "--output-dir", "out"]),
        ],
    )
    def test_scripts_of_dataclasses(self, name, words, spelled, capsys):
        words = [spelled(word[2:]) if word.startswith("--") else word for word in words]
        assert load_script(name).main([*words, spelled("num-reader-threads"), "x"]) == 2
        assert "num_reader_threads='x': must be a whole number" in capsys.readouterr().err

    def test_the_shard_builder(self, spelled, tmp_path, capsys):
        from shard_builder.cli import main

        words = ["stats", str(tmp_path), spelled("max-pixels"), "x"]
        with pytest.raises(SystemExit):
            main(words)
        assert "argument --max-pixels: invalid int value: 'x'" in capsys.readouterr().err
