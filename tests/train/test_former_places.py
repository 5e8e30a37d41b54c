"""Import paths of the first README keep working, and say where things are now."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("former", "present", "name"),
    [
        ("model", "models.policy", "Qwen2_5_VLForConditionalGenerationWithLogits"),
        ("config", "setup.arguments", "DataArguments"),
        ("difficulty", "observe.difficulty_log", "read_difficulty"),
    ],
)
def test_a_former_place_warns_and_works(former, present, name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"grpo_stream.train.{former}", raising=False)
    now = f"grpo_stream.train.{present}"
    with pytest.warns(DeprecationWarning, match=f"import from {now}") as caught:
        module = importlib.import_module(f"grpo_stream.train.{former}")
    assert len(caught) == 1
    there = importlib.import_module(now)
    assert {one: getattr(module, one) for one in module.__all__} == {
        one: getattr(there, one) for one in module.__all__
    }
    assert name in module.__all__


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("grpo_stream.train.trainer", "PersonalizedGRPOTrainer"),
        ("grpo_stream.grounding.cases", "cases_of"),
        ("grpo_stream.grounding.rewards", "accuracy_reward_coord"),
    ],
)
def test_what_has_not_moved(module, name):
    assert hasattr(importlib.import_module(module), name)
