"""The files that launchers read: by DeepSpeed's own parser, and field by field."""

import re

import yaml

from tests.launch.support import ROOT


def test_deepspeed_reads_the_host_file():
    from deepspeed.launcher.runner import fetch_hostfile

    hosts = fetch_hostfile(str(ROOT / "launch/hostfile.example"))
    assert hosts == {"node-1": 8, "node-2": 8}


def test_every_line_of_the_environment_is_one_that_deepspeed_can_export():
    """It splits each line at "=" and has no comments and no empty lines."""
    lines = (ROOT / "launch/deepspeed_env.example").read_text().splitlines()
    assert len(lines) > 5
    assert [line for line in lines if not re.fullmatch(r"[A-Z_0-9]+=[\w@%+:,./-]+", line)] == []


class TestPyTorchJob:
    job = yaml.safe_load((ROOT / "launch/kubernetes/pytorchjob.yaml").read_text())
    master = job["spec"]["pytorchReplicaSpecs"]["Master"]
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    pod = master["template"]["spec"]
    container = pod["containers"][0]
    flags = dict(zip(container["args"][::2], container["args"][1::2], strict=True))

    def test_is_one_for_the_training_operator(self):
        assert (self.job["apiVersion"], self.job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
        assert self.master["replicas"] == 1
        assert self.container["name"] == "pytorch"

    def test_all_pods_are_alike_and_start_again(self):
        assert self.worker["template"] == self.master["template"]
        assert {spec["restartPolicy"] for spec in (self.master, self.worker)} == {"OnFailure"}
        assert self.job["spec"]["runPolicy"]["backoffLimit"] > 1
        assert self.flags["--resume_from_checkpoint"] == "true"

    def test_a_rank_per_gpu(self):
        gpus = self.container["resources"]["limits"]["nvidia.com/gpu"]
        assert self.job["spec"]["nprocPerNode"] == gpus
        assert self.container["command"] == ["torchrun", "launch/train.py"]

    def test_checkpoints_lie_in_a_volume_that_all_pods_share(self):
        mounts = {mount["name"]: mount["mountPath"] for mount in self.container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        assert mounts.keys() == volumes.keys()
        assert self.flags["--output_dir"].startswith(mounts["shared"] + "/")
        assert "persistentVolumeClaim" in volumes["shared"]
        assert volumes["shm"]["emptyDir"] == {"medium": "Memory"}

    def test_the_image_is_left_to_the_reader(self):
        assert self.container["image"] == "REGISTRY/grpo_stream:TAG"
