"""What launch/sft.py refuses and says before it loads weights, and the file in launch/configs/."""

import json

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.settings_parser import SettingsParser
from grpo_stream.train.supervised.supervised_plan import make_settings, plan_supervised, read_flags
from shard_builder.cli import main as shard_builder
from tests.launch.support import ROOT, load_script
from tests.stream.support import write_numbered_set
from tests.train.support import write_shapes

CONFIG = ROOT / "launch/configs/sft_qwen2_5_vl_3b.yaml"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_numbered_set(tmp_path_factory.mktemp("shards"), 300, per_shard=64)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """Six images with two records each, image by image."""
    folder = tmp_path_factory.mktemp("grouped")
    shapes = write_shapes(folder, 6)
    records = [*shapes.records, *({**r, "prompt": f"{r['prompt']}!"} for r in shapes.records)]
    (folder / "records.json").write_text(json.dumps(records))
    words = ["build", folder / "records.json", "--images-root", shapes.images]
    words += ["--out", folder / "out", "--group-by", "image", "--progress", "quiet"]
    assert shard_builder([str(word) for word in words]) == 0
    return folder / "out"


def planned(*flags):
    parser, namespace = read_flags([str(flag) for flag in flags], use_cpu=True)
    assert isinstance(parser, SettingsParser)
    return plan_supervised(make_settings(parser, namespace, is_alone=True))


def test_the_file_fits_the_ranks_that_it_names(shards, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = planned("--config", CONFIG, "--shards", shards, "--num_ranks", 8)
    assert (plan.num_lanes, plan.num_batches, plan.max_steps) == (128, 2, 2)
    assert plan.notes == []
    assert "128 records over all ranks" in plan.describe()


def test_a_dry_run_loads_nothing(shards, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    words = ["--config", CONFIG, "--shards", shards, "--dry-run", "--num-ranks", 8]
    assert load_script("sft").main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "no weights were loaded" in said
    assert "taught is the solution" in said


def test_variables_of_the_chat_template(tmp_path):
    policy = ROOT / "data/tiny_policy"
    words = ["--model_name_or_path", policy, "--shards", write_shapes(tmp_path, 4).shards]
    words += ["--output_dir", tmp_path / "out", "--per_device_train_batch_size", 2]
    (tmp_path / "run.yaml").write_text("chat_template_kwargs: {enable_thinking: false}")
    flag = ["--chat_template_kwargs", '{"enable_thinking": false}']
    for given in (flag, ["--config", tmp_path / "run.yaml"]):
        (note,) = planned(*words, *given).notes
        assert "the model's chat template knows no enable_thinking, which has no effect" in note
    with pytest.raises(ConfigError, match="chat_template_kwargs='no': must be a mapping"):
        planned(*words, "--chat_template_kwargs", "no")


def test_images_with_their_records(grouped):
    flags = ["--model_name_or_path", "some/model", "--per_device_train_batch_size", 2]
    plan = planned(*flags, "--shards", grouped, "--group_by", "image")
    assert (plan.num_lanes, plan.num_batches) == (2, 3)
    assert "2 images with all their records over all ranks" in plan.describe()
    assert "12" in dict(plan.lines)["records"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--group_by", "image"], "group_by='image': needs shards whose records of an image"),
        (["--packing", "true"], "packing=True: is of rows that trl makes itself"),
        (["--prompt_template", "box_thinking"], "name the field that has them as answer_key"),
        (
            ["--eval_strategy", "steps", "--eval_steps", "5"],
            "eval_strategy='steps': needs eval_shards",
        ),
        (["--stop_accuracy", "0.5"], "stop_accuracy=0.5: needs eval_shards"),
        (["--num_generations", "4"], "num_generations='4': is no setting"),
    ],
)
def test_refused(flags, words, shards, capsys, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    given = ["--model_name_or_path", "some/model", "--shards", str(shards), "--dry-run", *flags]
    assert load_script("sft").main(given) == 2
    assert words in capsys.readouterr().err
