"""A signed URL is a key: nothing that a training or an evaluation writes or says may hold it."""

import json

import pytest

from benchmarks.servers.object_server import ObjectServer
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.local_store import LocalStore
from grpo_stream.train.models.tiny import make_tiny_policy
from tests.launch.support import load_script
from tests.multiprocess.ranks import run_ranks
from tests.train.support import TASK_TEXTS, write_shapes

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="four starts of launch/train.py and an evaluation"),
]

SECRET = "s3cr3t"  # noqa: S105 - what is looked for
QUERY = f"?sv=2024&sig={SECRET}&X-Amz-Security-Token={SECRET}"


class Site:
    """Shards on a web server, of which one sample is damaged, and a policy to train."""

    def __init__(self, folder, server):
        self.server, self.out = server, folder / "out"
        self.policy = make_tiny_policy(folder / "tiny", TASK_TEXTS)
        shapes = write_shapes(folder, 16)
        shards = shapes.shards
        self.images = shapes.images
        server.objects["data/raw/records.json"] = json.dumps(shapes.records).encode()
        server.add_folder(shards, "data/set")
        server.add_folder(shards, "data/held_out")
        manifest = Manifest.load(LocalStore(shards))
        entry = ShardIndex.load(LocalStore(shards), manifest.shards[0])[1]
        # Behind the tar header and PNG's signature, whenever it is read.
        server.flips[f"set/{manifest.shards[0].name}"] = [entry.offset + 512 + 30, 10**6]

    def train(self, *flags, exit_code=0, data=None):
        """What the run says."""
        data = data or ("--shards", self.signed("set"))
        words = [
            *("--model_name_or_path", self.policy, "--output_dir", self.out, *data),
            *("--per_device_train_batch_size", "16", "--num_generations", "2"),
            *("--max_steps", "2", "--max_completion_length", "4", "--logging_steps", "1", *flags),
        ]
        (log,) = run_ranks(
            lambda _: ["launch.train", *words], timeout=120, num_ranks=1, exit_code=exit_code
        )
        return log

    def signed(self, name):
        return f"{self.server.url}/data/{name}{QUERY}"

    def evaluate(self, capfd):
        """What the evaluation of the trained policy says."""
        words = ["--model", str(self.out), "--shards", self.signed("held_out")]
        words += ["--max_completion_length", "4", "--device", "cpu", "--num-pictures", "2"]
        assert load_script("evaluate").main([*words, "--report", str(self.out / "report")]) == 0
        return "".join(capfd.readouterr())


def test_nothing_of_a_run_holds_a_secret(tmp_path, capfd):
    watched = [
        *("--report_to", "tensorboard", "--rollout_sheet_steps", "1", "--difficulty_log", "true"),
        *("--save_strategy", "steps", "--save_steps", "1", "--cache_dir", tmp_path / "cache"),
        *("--eval_strategy", "steps", "--eval_steps", "1", "--per_device_eval_batch_size", "8"),
    ]
    with ObjectServer() as server:
        site = Site(tmp_path, server)
        records = ("--json", site.signed("raw/records.json"), "--images_root", site.images)
        missing = ("--shards", site.signed("nothing"))
        said = {
            "records": site.train("--dry_run", "true", data=records),
            "missing": site.train("--skip_preflight", "true", data=missing, exit_code=2),
            "refused": site.train("--max_bad_samples", "0", exit_code=2),
            "trained": site.train(
                *("--eval_shards", site.signed("held_out"), "--max_bad_samples", "9", *watched)
            ),
        }
        said["evaluated"] = site.evaluate(capfd)
    written = {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for folder in ("out", "cache")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file()
    }
    names = " ".join(written)
    for name in (
        *("quarantine.json", "heartbeat", "rollouts", "trainer_state.json", "training_args.bin"),
        *("tfevents", "difficulty.jsonl", "results.json", "index.html", ".tar"),
    ):
        assert name in names
    for name in ("records", "missing", "refused", "trained"):
        assert "sig=***" in said[name]
    assert not [name for name in written if SECRET in name]
    assert not [name for name, data in written.items() if SECRET.encode() in data]
    assert not [name for name, text in said.items() if SECRET in text]
