"""Every launch script that computes prepares CUDA before it asks anything of it."""

import os

import pytest
import torch

from grpo_stream.train.models.cuda_settings import choose_attention_kernels
from tests.launch.support import ROOT, load_script
from tests.stream.support import write_numbered_set

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

COMPUTE = ("train", "sft", "preflight", "evaluate")
START_OTHERS = ("quickstart", "pretrain", "phases")
"""They run the others as commands, and no model themselves."""
RUN_NO_MODEL = (
    "convert_checkpoint", "estimate", "export", "health", "make_scenes", "make_shapes",
    "tiny_policy",
)  # fmt: skip


class AskedError(Exception):
    """CUDA was asked for the first time."""


@pytest.fixture(autouse=True)
def as_torch_has_it(monkeypatch):
    """cuDNN on, no word about the allocator, and no launcher; put back afterwards."""
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    choose_attention_kernels(cudnn_attention=True)
    for name in (*VARIABLES, "DS_ACCELERATOR", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    choose_attention_kernels(cudnn_attention=was_on)


def state():
    """Whether cuDNN attends, and how the allocator is told to grow."""
    (words,) = {os.environ.get(name) for name in VARIABLES} - {None} or {None}
    return torch.backends.cuda.cudnn_sdp_enabled(), words


def test_every_script_is_in_one_of_the_lists():
    scripts = {path.stem for path in (ROOT / "launch").glob("*.py")}
    assert scripts == {*COMPUTE, *START_OTHERS, *RUN_NO_MODEL}


def state_when_cuda_is_asked(name, monkeypatch):
    """Of a script's ``main``, which goes no further."""
    found = []

    def asked(*_, **__):
        found.append(state())
        raise AskedError

    # What is asked of CUDA first: whether it is there; in an evaluation, by the plan's processes.
    monkeypatch.setattr(torch.cuda, "is_available", asked)
    monkeypatch.setattr(torch.cuda, "device_count", asked)
    script = load_script(name)
    if name == "evaluate":
        monkeypatch.setattr(script, "plan_evaluation", asked)
    words = ["--model", "m", "--shards", "s", "--report", "r"] if name == "evaluate" else []
    with pytest.raises(AskedError):
        script.main(words)
    return found


@pytest.mark.parametrize("given", [None, "max_split_size_mb:128"])
@pytest.mark.parametrize("name", COMPUTE)
def test_cudnn_is_off_and_memory_grows_before_cuda_is_asked(name, given, monkeypatch):
    if given is not None:
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", given)
    expected = (False, given or "expandable_segments:True")
    assert state_when_cuda_is_asked(name, monkeypatch) == [expected]


@pytest.mark.parametrize("wanted", ["false", "true"])
@pytest.mark.parametrize("name", ["sft", "evaluate"])
def test_the_setting_lets_cudnn_in_again(name, wanted, monkeypatch, tmp_path):
    """Of ``train`` the test of its plan shows it."""
    script, found = load_script(name), []
    words = ["--cudnn_attention", wanted]
    if name == "evaluate":
        stub = type("Plan", (), {"world": type("World", (), {"rank": 1}), "notes": []})

        def run_evaluation(_):
            found.append(state()[0])

        monkeypatch.setattr(script, "plan_evaluation", lambda *_: stub)
        monkeypatch.setattr(script, "run_evaluation", run_evaluation)
        words += ["--model", "m", "--shards", "s", "--report", "r"]
    else:
        words += ["--config", ROOT / "launch/configs/sft_qwen2_5_vl_3b.yaml", "--dry-run"]
        words += ["--shards", write_numbered_set(tmp_path, 200, per_shard=64), "--num-ranks", 8]
        monkeypatch.chdir(ROOT)
    assert script.main([str(word) for word in words]) == 0
    assert (found or [state()[0]]) == [wanted == "true"]
