from types import SimpleNamespace

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.decode_setting import chosen_decode


def arguments(**changes):
    settings = {"use_vllm": False, "deepspeed_plugin": None, "ds3_gather_for_generation": True}
    return SimpleNamespace(**settings | changes)


ZERO3 = SimpleNamespace(zero_stage=3)


@pytest.mark.parametrize(
    ("wanted", "device", "changes", "expected", "reason"),
    [
        ("auto", "cuda", {}, "compiled", "GPU"),
        ("auto", "cpu", {}, "eager", "on cpu"),
        ("compiled", "cpu", {}, "compiled", "as set"),
        ("eager", "cuda", {}, "eager", "as set"),
        ("compiled", "cuda", {"use_vllm": True}, "eager", "vLLM"),
        ("auto", "cuda", {"deepspeed_plugin": ZERO3}, "compiled", "GPU"),
        (
            "compiled",
            "cuda",
            {"deepspeed_plugin": ZERO3, "ds3_gather_for_generation": False},
            "eager",
            "ds3_gather_for_generation",
        ),
    ],
)
def test_what_is_chosen_and_why(wanted, device, changes, expected, reason):
    mode, why = chosen_decode(wanted, arguments(**changes), device)
    assert mode == expected
    assert reason in why


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match=r"decode='fast'.*auto, eager, compiled"):
        chosen_decode("fast", arguments(), "cpu")
