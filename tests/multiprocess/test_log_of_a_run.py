"""What launch/train.py writes on two ranks, with what a killed process has left behind."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from grpo_stream.train.models.tiny import make_tiny_policy
from tests.launch.support import ROOT
from tests.multiprocess.ranks import run_ranks
from tests.train.support import TASK_TEXTS, write_shapes

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def extensions(tmp_path_factory):
    """Compiled operators, with a lock that a killed process left a while ago."""
    built = os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix, "torch_extensions")
    copied = tmp_path_factory.mktemp("operators") / "operators"
    shutil.copytree(built, copied)
    lock = copied / "deepspeed_shm_comm/lock"
    lock.touch()
    os.utime(lock, (time.time() - 100, time.time() - 100))  # the others keep theirs: it is built
    return copied


@pytest.fixture(scope="module")
def logs(extensions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
        patch.delenv("PYTHONWARNINGS", raising=False)
        flags = [
            *("--model_name_or_path", make_tiny_policy(folder / "tiny", TASK_TEXTS)),
            *("--shards", write_shapes(folder, 8).shards, "--output_dir", folder / "out"),
            *("--per_device_train_batch_size", "4", "--num_generations", "4"),
            *("--max_steps", "1", "--max_completion_length", "4", "--logging_steps", "1"),
            *("--report_to", "none", "--deepspeed", ROOT / "ds_configs/zero3_cpu.json"),
        ]
        return run_ranks(lambda _: ["launch.train", *flags], timeout=120)


def test_a_stale_lock_is_removed_by_the_first_rank_of_the_node(logs, extensions):
    lock = extensions / "deepspeed_shm_comm/lock"
    assert not lock.exists()
    assert f"removed {lock}: the process that compiled there is gone" in logs[0]
    assert "removed" not in logs[1]


def test_libraries_warn_of_nothing_that_is_known(logs):
    for log in logs:
        assert "FutureWarning" not in log
    assert "global step 1:" in logs[0]
