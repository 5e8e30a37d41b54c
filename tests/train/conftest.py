"""One tiny policy for all tests of this folder; models and processors are loaded from it."""

import gc
import os
import sys
from typing import Any

# Before torch: the models are so small that a second thread only costs time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from trl import GRPOConfig

from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.runs import NUM_LANES, spread_reward
from tests.train.support import QUIET, TASK_TEXTS, load_model, write_shapes


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_vllm(monkeypatch):
    """Where it is installed, too; a stand-in takes the place."""
    monkeypatch.setitem(sys.modules, "vllm", None)


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage():
    """Each training begins with a collection, which looked through all that imports have made."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return make_tiny_policy(tmp_path_factory.mktemp("tiny"), TASK_TEXTS)


@pytest.fixture(scope="session")
def processor(tiny_folder):
    return load_processor(tiny_folder)


@pytest.fixture
def model(tiny_folder):
    return load_model(tiny_folder)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Shards of 13 coloured shapes, and the raw records and images that they hold."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), 13)


@pytest.fixture
def make_args(tmp_path):
    def make(**changes):
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            **QUIET,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "steps_per_generation": 2,
            "gradient_accumulation_steps": 2,
            "num_generations": 2,
            "max_completion_length": 4,
            "max_steps": 2,
            "learning_rate": 1e-3,
        }
        return GRPOConfig(**(settings | changes))

    return make


@pytest.fixture
def make_trainer(tiny_folder, processor, shapes, make_args):
    made = []

    def make(
        args=None, *, reward_funcs=None, train_dataset=None, folder=None, num_lanes=NUM_LANES, **kw
    ):
        if train_dataset is None:
            source = ShardSource(str(folder or shapes.shards))
            train_dataset = PromptStream(
                source, StreamConfig(num_lanes=num_lanes, num_reader_threads=1)
            )
        trainer = PersonalizedGRPOTrainer(
            str(tiny_folder),
            reward_funcs or spread_reward,
            args or make_args(),
            train_dataset,
            processing_class=processor,
            **kw,
        )
        made.append(trainer)
        return trainer

    yield make
    for trainer in made:
        trainer.close()
