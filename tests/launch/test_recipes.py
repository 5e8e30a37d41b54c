"""The files that launchers read: by DeepSpeed's own parser, and field by field."""

import re

import yaml

from tests.launch.support import ROOT

JOB = yaml.safe_load((ROOT / "launch/kubernetes/pytorchjob.yaml").read_text())
MASTER = JOB["spec"]["pytorchReplicaSpecs"]["Master"]
WORKER = JOB["spec"]["pytorchReplicaSpecs"]["Worker"]
POD = MASTER["template"]["spec"]
CONTAINER = POD["containers"][0]
FLAGS = dict(zip(CONTAINER["args"][::2], CONTAINER["args"][1::2], strict=True))


def test_deepspeed_reads_the_host_file():
    from deepspeed.launcher.runner import fetch_hostfile

    hosts = fetch_hostfile(str(ROOT / "launch/hostfile.example"))
    assert hosts == {"node-1": 8, "node-2": 8}


def test_every_line_of_the_environment_is_one_that_deepspeed_can_export():
    """It splits each line at "=" and has no comments and no empty lines."""
    lines = (ROOT / "launch/deepspeed_env.example").read_text().splitlines()
    assert len(lines) > 5
    assert [line for line in lines if not re.fullmatch(r"[A-Z_0-9]+=[\w@%+:,./-]+", line)] == []


def test_is_one_for_the_training_operator():
    assert (JOB["apiVersion"], JOB["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert MASTER["replicas"] == 1
    assert CONTAINER["name"] == "pytorch"


def test_all_pods_are_alike_and_start_again():
    assert WORKER["template"] == MASTER["template"]
    assert {spec["restartPolicy"] for spec in (MASTER, WORKER)} == {"OnFailure"}
    assert JOB["spec"]["runPolicy"]["backoffLimit"] > 1
    assert FLAGS["--resume_from_checkpoint"] == "auto"


def test_a_rank_per_gpu():
    gpus = CONTAINER["resources"]["limits"]["nvidia.com/gpu"]
    assert JOB["spec"]["nprocPerNode"] == gpus
    assert CONTAINER["command"] == ["torchrun", "launch/train.py"]


def test_checkpoints_lie_in_a_volume_that_all_pods_share():
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert FLAGS["--output_dir"].startswith(mounts["shared"] + "/")
    assert "persistentVolumeClaim" in volumes["shared"]
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory"}


def test_the_image_is_left_to_the_reader():
    assert CONTAINER["image"] == "REGISTRY/grpo_stream:TAG"
