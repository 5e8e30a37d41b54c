import importlib.metadata

import torch
from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig, get_peft_model

from grpo_stream.train.models.base_model import base_model, unwrapped


class Holder(torch.nn.parallel.DistributedDataParallel):
    """A wrapper, without the process group that a real one joins."""

    def __init__(self, model):
        torch.nn.Module.__init__(self)
        self.module = model


def test_what_is_around_a_model_comes_off(model):
    assert unwrapped(model) is model
    assert unwrapped(Holder(model)) is model
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    assert unwrapped(Holder(adapted)) is adapted
    assert base_model(Holder(adapted)) is model


def test_no_description_of_a_package_is_read_at_each_call(model, monkeypatch):
    extract_model_from_parallel(model)

    def read(name):
        raise AssertionError(f"{name}'s description is read again")

    monkeypatch.setattr(importlib.metadata, "metadata", read)
    assert extract_model_from_parallel(Holder(model)) is model
