"""One tiny policy for all tests of this folder; models and processors are loaded from it."""

import os

# Before torch: the models are so small that a second thread only costs time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from grpo_stream.train.processor import load_processor
from grpo_stream.train.tiny import make_tiny_policy
from tests.train.support import TASK_TEXTS, load_model, write_shapes


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
