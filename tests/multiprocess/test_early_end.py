"""SIGTERM, SIGUSR1 and Ctrl-C before the first step, at every place where a rank may wait."""

import signal
import time

import pytest

from grpo_stream.train.cluster.stop_on_request import EXIT_INTERRUPTED, EXIT_STOPPED
from tests.launch.support import ROOT
from tests.multiprocess.ranks import run_ranks
from tests.train.support import TASK_TEXTS, write_shapes

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    from grpo_stream.train.models.tiny import make_tiny_policy

    folder = tmp_path_factory.mktemp("early")
    return [
        *("--model_name_or_path", make_tiny_policy(folder / "tiny", TASK_TEXTS)),
        *("--shards", write_shapes(folder, 8).shards, "--output_dir", folder / "out"),
        *("--per_device_train_batch_size", "4", "--num_generations", "4"),
        *("--report_to", "none", "--deepspeed", ROOT / "ds_configs/zero3_cpu.json"),
    ]


def end_at(place, number, code, flags, num_ranks=1):
    """The log of rank 0; all ranks end with ``code``, each soon after its signal."""
    places = [place, "silent"]
    started = time.monotonic()
    logs = run_ranks(
        lambda rank: [
            *("tests.multiprocess.early_end_probe", places[rank], int(number)), *flags
        ],
        timeout=60,
        exit_code=code,
        num_ranks=num_ranks,
    )  # fmt: skip
    assert time.monotonic() - started < 40  # that is waiting for no time-out of the run's own
    assert f"rank 0: received {number.name} before the first step" in logs[0]
    return logs[0]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGUSR1, EXIT_STOPPED), (signal.SIGINT, EXIT_INTERRUPTED)],
)
def test_while_the_other_rank_does_not_come(number, code, flags, monkeypatch):
    monkeypatch.setenv("NUM_MISSING_RANKS", "1")
    end_at("rendezvous", number, code, flags)


def test_while_the_other_rank_is_silent_in_the_preflight(flags):
    end_at("preflight", signal.SIGTERM, EXIT_STOPPED, flags, num_ranks=2)


def test_while_another_process_compiles(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    end_at("lock", signal.SIGTERM, EXIT_STOPPED, flags)


def test_while_the_policy_is_loaded(flags):
    end_at("loading", signal.SIGINT, EXIT_INTERRUPTED, flags)


def test_in_code_that_swallows_what_a_handler_raises(flags):
    log = end_at("swallowed", signal.SIGTERM, EXIT_STOPPED, flags)
    assert "swallowed\n" in log
