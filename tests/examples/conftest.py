"""One tiny policy for the examples that train."""

import json
import os

# Before torch: the model is so small that a second thread only costs time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from grpo_stream.train.models.tiny import make_tiny_policy, task_texts


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    from examples.train_from_json import SCREENSHOTS

    records = json.loads((SCREENSHOTS / "records.json").read_text(encoding="utf-8"))
    texts = task_texts([record["prompt"] for record in records], 224, 8)
    return make_tiny_policy(tmp_path_factory.mktemp("policy"), texts)
