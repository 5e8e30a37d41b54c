"""Real DeepSpeed ZeRO-3 on two ranks over gloo, on the committed screenshots."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from tests.launch.support import load_script
from tests.multiprocess.ranks import free_port, run_ranks

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "data/screenshots"
NUM_RANKS, NUM_GENERATIONS, PER_DEVICE = 2, 4, 8
NUM_LANES = NUM_RANKS * PER_DEVICE // NUM_GENERATIONS

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="the launcher, twice: it and each rank import all that training needs"),
]


@pytest.fixture(scope="module")
def records():
    """Real records: one of every image size and kind, and those with the longest prompts."""
    everything = json.loads((SCREENSHOTS / "records.json").read_text())
    by_length = sorted(everything, key=lambda record: -len(record["prompt"]))
    chosen = {kind_of(record): record for record in reversed(by_length)}
    longest = [record for record in by_length if record not in chosen.values()]
    num_records = -(-len(chosen) // NUM_LANES) * NUM_LANES
    return [*chosen.values(), *longest][:num_records]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, records):
    """Shards of them and a tiny policy, made as users make them."""
    folder = tmp_path_factory.mktemp("zero3")
    (folder / "records.json").write_text(json.dumps(records))
    build = ["-m", "tools.shard_builder", "build", folder / "records.json", "--quiet"]
    call([*build, "--images-root", SCREENSHOTS, "--out", folder / "shards"])
    tiny = ["--json", folder / "records.json", "--out", folder / "tiny"]
    assert load_script("tiny_policy").main([*map(str, tiny)]) == 0
    return folder


@pytest.fixture(scope="module")
def two_steps(folder):
    log = folder / "run.log"
    with log.open("w") as file:
        launcher = start(folder, "probe", file, "--max_steps", "2")
        try:
            code = launcher.wait(timeout=400)
        finally:
            end(launcher)
    assert code == 0, log.read_text()[-5000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(NUM_RANKS)]


def test_parameters_are_partitioned_by_deepspeed_at_stage_3(two_steps):
    for seen in two_steps:
        assert seen["engine"] == "DeepSpeedEngine"
        assert seen["zero_stage"] == 3
        assert seen["weight_shape"] == [0]
        assert seen["weight_elements_here"] == seen["weight_elements"] // NUM_RANKS


def test_every_rank_scores_its_own_whole_groups_in_the_plans_order(folder, two_steps):
    for rank, seen in enumerate(two_steps):
        stream = planned(folder, rank)
        expected = [[s.key for s in stream.read_batch(0, batch)] for batch in range(2)]
        assert [keys[::NUM_GENERATIONS] for keys in seen["keys"]] == expected
        for keys in seen["keys"]:
            for start in range(0, len(keys), NUM_GENERATIONS):
                assert len(set(keys[start : start + NUM_GENERATIONS])) == 1
        assert seen["shared_prefix"]
    first, second = ({key for keys in seen["keys"] for key in keys} for seen in two_steps)
    assert not first & second


def test_resuming_goes_on_with_the_next_batch_until_all_images_have_flown(
    folder, records, two_steps, monkeypatch
):
    assert (folder / "out/checkpoint-2/cursor.json").is_file()
    num_batches = len(records) // NUM_LANES
    more = ["--max_steps", num_batches, "--resume_from_checkpoint", "true"]
    monkeypatch.setenv("PROBE_DIR", str(folder))
    run_ranks(
        lambda _: ["tests.multiprocess.probe", *flags_of(folder, "probe"), *more], timeout=400
    )
    scales = [tuple(size) for seen in two_steps for size in seen["scales"]]
    for rank in range(NUM_RANKS):
        seen = json.loads((folder / f"rank-{rank}.json").read_text())
        stream = planned(folder, rank)
        expected = [[s.key for s in stream.read_batch(0, b)] for b in range(2, num_batches)]
        assert [keys[::NUM_GENERATIONS] for keys in seen["keys"]] == expected
        scales += [tuple(size) for size in seen["scales"]]
        assert all(w % 28 == 0 and h % 28 == 0 for w, h in seen["sizes"])
    assert set(scales) == {(record["width"], record["height"]) for record in records}
    assert {(390, 844), (1920, 1080)} <= set(scales)
    assert {kind for _, kind in map(kind_of, records)} == {".png", ".jpg"}


def test_the_run_ends_when_a_rank_is_killed(folder):
    log = folder / "killed.log"
    with log.open("w") as file:
        flags = ["--output_dir", folder / "k", "--max_steps", "1000", "--beta", "0.1"]
        flags += ["--gradient_checkpointing", "true", "--num_iterations", "2"]
        flags += ["--gradient_accumulation_steps", "2", "--logging_steps", "1"]
        launcher = start(folder, "train", file, *flags)
        try:
            wait_for(lambda: "global step 1:" in log.read_text(), 240, launcher)
            ranks = [p for p in psutil.Process(launcher.pid).children(recursive=True) if is_rank(p)]
            assert len(ranks) == NUM_RANKS
            ranks[-1].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            code = launcher.wait(timeout=200)
            assert time.monotonic() - killed < 60
        finally:
            end(launcher)
    assert code != 0
    assert "exits with return code" in log.read_text()
    assert not [rank for rank in ranks if rank.is_running()]


def kind_of(record):
    return (record["width"], record["height"]), Path(record["image"]).suffix


def planned(folder, rank):
    config = StreamConfig(num_lanes=NUM_LANES, stream_seed=42, resize=None)
    return PromptStream(ShardSource(str(folder / "shards")), config, World(rank, NUM_RANKS, rank))


def flags_of(folder, script):
    reward = {"probe": "tests.multiprocess.probe:spying_reward", "train": "format_reward"}[script]
    settings = {
        "model_name_or_path": folder / "tiny",
        "shards": folder / "shards",
        "output_dir": folder / "out",
        "deepspeed": "ds_configs/zero3_cpu.json",
        "per_device_train_batch_size": PER_DEVICE,
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": 4,
        "max_pixels": 28 * 28 * 512,
        "gradient_checkpointing": "false",
        "report_to": "none",
        "save_steps": 1,
        "logging_steps": 1,
        "seed": 42,
        "reward_funcs": reward,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def start(folder, script, file, *flags):
    path = {"probe": "tests/multiprocess/probe.py", "train": "launch/train.py"}[script]
    deepspeed = Path(sys.executable).parent / "deepspeed"
    launch = [deepspeed, "-q", "--num_gpus", NUM_RANKS, "--master_port", free_port(), path]
    return subprocess.Popen(
        [str(word) for word in [*launch, *flags_of(folder, script), *flags]],
        cwd=ROOT,
        env=environment(folder),
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def call(words):
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def environment(folder=None):
    extra = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PROBE_DIR": str(folder),
    }
    return {**os.environ, **extra}


def is_rank(process):
    return "launch/train.py" in process.cmdline() and "--local_rank=" in " ".join(process.cmdline())


def wait_for(condition, seconds, launcher):
    deadline = time.monotonic() + seconds
    while not condition():
        assert launcher.poll() is None, "the run ended early"
        assert time.monotonic() < deadline, "the run did not get there in time"
        time.sleep(0.2)


def end(launcher):
    """Ends the launcher's whole process group; a launcher killed alone leaves its ranks behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
