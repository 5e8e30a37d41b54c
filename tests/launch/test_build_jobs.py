"""The batch jobs that build in parts: a Slurm array and an indexed Job, with Slurm's and
Kubernetes's variables in the environment."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from jsonschema import Draft7Validator

from shard_builder.build.build import build
from shard_builder.parts.plan_request import Part
from tests.launch.support import ROOT
from tests.launch.test_slurm import bash
from tests.shard_builder.support import files_of, make_settings, write_raw

SLURM = ROOT / "launch/slurm/build.sbatch"
JOB = yaml.safe_load((ROOT / "launch/kubernetes/build-job.yaml").read_text())
SPEC = JOB["spec"]
POD = SPEC["template"]["spec"]
CONTAINER = POD["containers"][0]

NOTES_WORDS = f"""\
#!{sys.executable}
import json, sys
print(json.dumps(sys.argv[1:]))
"""
BUILDS = f"""\
#!{sys.executable}
import os, sys
os.environ["PYTHONPATH"] = {str(ROOT)!r} + os.pathsep + {str(ROOT / "tools")!r}
os.execv(sys.executable, [sys.executable, "-m", "tools.shard_builder", *sys.argv[1:]])
"""


@pytest.fixture
def run(tmp_path):
    """Runs a command with a stand-in for the installed ``shard-builder``."""

    def run(command, environment, script=NOTES_WORDS):
        program = tmp_path / "venv/bin/shard-builder"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(script)
        program.chmod(0o755)
        path = f"{program.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            command,
            env={**os.environ, "PATH": path, "VENV": str(tmp_path / "venv"), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def slurm_command(*flags):
    return [bash(), str(SLURM), *flags]


def slurm_task(number):
    return {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_CPUS_PER_TASK": "2"}


def pod(index, **more):
    variables = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    return {**variables, "JOB_COMPLETION_INDEX": str(index), **more}


def test_a_task_of_the_array_builds_its_part(run):
    words = json.loads(run(slurm_command("a b.json", "--out", "s3://bucket/x"), slurm_task(7)))
    assert words[:4] == ["build", "a b.json", "--out", "s3://bucket/x"]
    assert words[4:] == ["--workers", "2", "--part", "7/100", "--progress", "json"]


def test_the_array_is_as_long_as_there_are_parts():
    text = SLURM.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    (num_parts,) = re.findall(r"NUM_PARTS:-(\d+)", text)
    assert options["array"] == f"1-{num_parts}"
    assert "requeue" in options
    assert {"%A", "%a"} <= set(re.findall("%[Aa]", options["output"]))  # a log a task


def test_a_pod_builds_its_part(run):
    words = json.loads(run([*CONTAINER["command"], *CONTAINER["args"]], pod(0)))
    assert words == ["build", *CONTAINER["args"], "--part", "1/100"]
    words = json.loads(run([*CONTAINER["command"], *CONTAINER["args"]], pod(99)))
    assert Part.parse(words[-1]) == Part(100, 100)


def faults(job):
    """Where a Job is not what the API server takes: fields, their kinds, what must be there."""
    schema = json.loads((ROOT / "tests/launch/schemas/build_job.json").read_text())
    return [error.json_path for error in Draft7Validator(schema).iter_errors(job)]


def test_the_job_is_what_the_schema_of_kubernetes_says():
    assert faults(JOB) == []
    assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "Job")


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("$.spec", {"completionmode": "Indexed"}),
        ("$.spec.completions", {"completions": "100"}),
        ("$.spec.podFailurePolicy", {"podFailurePolicy": {}}),
        ("$.spec.template.spec", {"template": {"spec": {**POD, "restartpolicy": "Never"}}}),
        ("$.spec.template.spec", {"template": {"spec": {"restartPolicy": "Never"}}}),
    ],
)
def test_the_schema_finds_what_the_api_server_would_refuse(where, change):
    assert faults({**JOB, "spec": {**SPEC, **change}}) == [where]


def test_is_an_indexed_job():
    assert SPEC["completionMode"] == "Indexed"
    assert 1 <= SPEC["parallelism"] <= SPEC["completions"]
    assert pod(0)["NUM_PARTS"] == str(SPEC["completions"])


def test_wrong_usage_ends_the_job_and_lost_nodes_do_not():
    preempted, wrong = SPEC["podFailurePolicy"]["rules"]
    assert (preempted["action"], wrong["action"]) == ("Ignore", "FailJob")
    assert preempted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    codes = {"containerName": CONTAINER["name"], "operator": "In", "values": [2]}
    assert wrong["onExitCodes"] == codes
    assert POD["restartPolicy"] == "Never"  # the API server refuses a podFailurePolicy otherwise


def test_a_pod_has_the_cores_that_it_uses():
    args = CONTAINER["args"]
    resources = CONTAINER["resources"]
    assert args[args.index("--workers") + 1] == resources["limits"]["cpu"]
    assert resources["limits"] == resources["requests"]
    mounts = {mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounts == {volume["name"] for volume in POD["volumes"]}
    assert CONTAINER["image"] == "REGISTRY/grpo_stream:TAG"


@pytest.mark.slow(reason="starts four builders as processes")
def test_both_build_what_one_process_builds(run, tmp_path):
    raw = write_raw(tmp_path / "raw")
    build(make_settings(raw, tmp_path / "here"))
    flags = [str(raw / "records.json"), "--images-root", str(raw), "--samples-per-shard", "4"]
    for number in (2, 1):
        out = ["--out", str(tmp_path / "slurm")]
        run(slurm_command(*flags, *out), {**slurm_task(number), "NUM_PARTS": "2"}, BUILDS)
        out = ["--out", str(tmp_path / "pods")]
        run([*CONTAINER["command"], *flags, *out], pod(number - 1, NUM_PARTS="2"), BUILDS)
    assert files_of(tmp_path / "slurm") == files_of(tmp_path / "here")
    assert files_of(tmp_path / "pods") == files_of(tmp_path / "here")
