"""What is set for CUDA; all of it can be asked without a GPU."""

import pytest
import torch

from grpo_stream.train.models.cuda_settings import (
    choose_attention_kernels,
    use_expandable_segments,
)

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture(autouse=True)
def same_afterwards(monkeypatch):
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    yield
    torch.backends.cuda.enable_cudnn_sdp(was_on)


@pytest.mark.parametrize("wanted", [True, False])
def test_cudnn_is_as_the_setting_says(wanted):
    assert choose_attention_kernels(cudnn_attention=wanted).startswith("on" if wanted else "off")
    assert torch.backends.cuda.cudnn_sdp_enabled() == wanted
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("version", "name"), [("2.8.0", NAMES[1]), ("2.10.0", NAMES[0]), ("2.13.0+cu130", NAMES[0])]
)
def test_segments_grow(monkeypatch, version, name):
    monkeypatch.setattr(torch, "__version__", version)
    use_expandable_segments()
    assert [one for one in NAMES if _value(one)] == [name]
    assert _value(name) == "expandable_segments:True"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:128")
    use_expandable_segments()
    assert {one: _value(one) for one in NAMES if _value(one)} == {name: "max_split_size_mb:128"}


def _value(name):
    import os

    return os.environ.get(name)
