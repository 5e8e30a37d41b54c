"""The files in launch/configs/ fit the world sizes that their headers name."""

import re
from pathlib import Path

import pytest
import yaml

from grpo_stream.families import FAMILIES
from grpo_stream.train.models.tiny import train_tokenizer, write_processor
from grpo_stream.train.setup.memory.model_sizes import MetaModel
from grpo_stream.train.setup.run_plan import parse_settings, plan_run
from tests.launch.published_sizes import published_config, write_published
from tests.stream.support import write_numbered_set

ROOT = Path(__file__).parents[2]
FILES = sorted(  # those of launch/train.py
    path for path in (ROOT / "launch/configs").glob("*.yaml") if not path.name.startswith("sft_")
)
NUM_SAMPLES = 70


def headers(path):
    """(world size, further flags) of every command in the comment at the file's top."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "".join(line.lstrip("#").rstrip("\\") + "\n" for line in lines if line.startswith("#"))
    commands = re.split(r"^ {3}(?=\w)", header, flags=re.MULTILINE)
    for command in commands:
        ranks = re.search(r"--num[-_](?:ranks|gpus) (\d+)", command)
        if ranks:
            more = re.search(r"--(?:per_device_train_batch|gradient_accumulation)_\w+ \d+", command)
            yield int(ranks[1]), more[0].split() if more else []


CASES = [
    pytest.param(path, num_ranks, flags, id=f"{path.stem}-{num_ranks}")
    for path in FILES
    for num_ranks, flags in headers(path)
]


def model_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["model_name_or_path"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_numbered_set(tmp_path_factory.mktemp("shards"), NUM_SAMPLES, per_shard=16)


@pytest.fixture
def settings_of(shards, tmp_path):
    def parse(path, flags=()):
        # Parsed without the DeepSpeed file, which would join a process group; put back for checks.
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        deepspeed = content.pop("deepspeed")
        alone = tmp_path / path.name
        alone.write_text(yaml.safe_dump(content), encoding="utf-8")
        # A hub id in place of the quickstart's policy, which only a run of it makes.
        argv = ["--config", str(alone), "--model_name_or_path", "some/model"]
        argv += ["--shards", str(shards), "--eval_strategy", "no", *flags]
        settings = parse_settings(argv, use_cpu=True)
        settings.args.deepspeed = deepspeed
        return settings

    return parse


def test_every_file_names_a_world_size():
    assert {case.values[0] for case in CASES} == set(FILES)


@pytest.mark.parametrize(("path", "num_ranks", "flags"), CASES)
def test_a_file_fits_the_world_sizes_of_its_header(
    path, num_ranks, flags, settings_of, monkeypatch
):
    monkeypatch.chdir(ROOT)
    settings = settings_of(path, flags)
    settings.run.num_ranks = num_ranks
    plan = plan_run(settings)
    args = settings.args
    completions = num_ranks * args.per_device_train_batch_size * args.steps_per_generation
    assert plan.num_lanes == completions // args.num_generations
    assert plan.num_batches == NUM_SAMPLES // plan.num_lanes
    assert plan.notes == []


OF_THE_HUB = [path for path in FILES if model_of(path).startswith("Qwen/")]


@pytest.mark.parametrize("path", OF_THE_HUB, ids=lambda path: path.stem)
def test_a_dry_run_on_the_models_own_sizes(path, settings_of, tmp_path, monkeypatch):
    folder = write_published(tmp_path, model_of(path))
    config = published_config(model_of(path))
    write_processor(folder, config, train_tokenizer(["Click"], family=config.model_type))
    monkeypatch.chdir(ROOT)
    settings = settings_of(path, ["--model_name_or_path", str(folder), "--dry_run", "true"])
    settings.run.num_ranks = next(headers(path))[0]
    text = plan_run(settings).describe()
    way = "packed" if FAMILIES[config.model_type].is_packed else "forked"
    assert f"auto: {way}" in text
    size = "1000x1000" if config.model_type.startswith("qwen3") else "84x56"
    assert f"The image is {size} pixels" in text
    tower = config.vision_config
    assert settings.data.max_pixels % (tower.patch_size * tower.spatial_merge_size) ** 2 == 0


@pytest.mark.parametrize("path", OF_THE_HUB, ids=lambda path: path.stem)
def test_a_file_says_how_large_its_model_is(path):
    (said,) = re.findall(r"Model: ([\d.]+)e9 weights", path.read_text(encoding="utf-8"))
    num_weights = MetaModel(published_config(model_of(path))).num_weights
    assert float(said) == pytest.approx(num_weights / 1e9, abs=0.01)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_checkpoint_falls_between_generation_batches(path, settings_of):
    args = settings_of(path).args
    micro_steps = args.save_steps * args.gradient_accumulation_steps
    assert micro_steps % (args.steps_per_generation * args.num_iterations) == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_group_is_never_cut(path, settings_of):
    args = settings_of(path).args
    assert args.per_device_train_batch_size % args.num_generations == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rewards_have_a_weight_each_or_none(path, settings_of):
    settings = settings_of(path)
    weights = settings.args.reward_weights
    assert weights is None or len(weights) == len(settings.task.reward_funcs)
