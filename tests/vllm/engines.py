"""Engines for tests: small, not compiled, and so exact that a difference is an error's own."""

from contextlib import contextmanager
from functools import partial

import pytest
from transformers import TrainerCallback
from trl.generation import vllm_generation

from tests.multiprocess.ranks import free_port

EAGER = {"enforce_eager": True, "max_model_len": 512}
# trl asks for "processed_logprobs", of what is left when vision tokens are banned. A tiny policy
# gives those a hundredth of its probability, and its own log-probabilities count them.
EXACT = {"dtype": "float32", "logprobs_mode": "raw_logprobs", **EAGER}


def use_engines(monkeypatch, **settings):
    """What trl does not set of an engine: it has a setting for neither."""
    monkeypatch.setattr(vllm_generation, "LLM", partial(_llm, settings))


def _llm(ours, **settings):
    from vllm import LLM

    return LLM(**settings | ours)


@contextmanager
def make_engine(folder, **settings):
    """As trl makes it, without a run around it."""
    from vllm import LLM

    with pytest.MonkeyPatch.context() as patch:
        world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**world, "MASTER_PORT": str(free_port())}.items():
            patch.setenv(name, value)
        llm = LLM(str(folder), distributed_executor_backend="external_launcher", **settings)
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()


class SyncOff(TrainerCallback):
    """The control: after so many global steps an engine gets no new weights."""

    def __init__(self, trainer, num_steps):
        self.generation, self.num_steps = trainer.vllm_generation, num_steps

    def on_step_end(self, args, state, control, **_):
        if state.global_step >= self.num_steps:
            self.generation.sync_weights = lambda: None
