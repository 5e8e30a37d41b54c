import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from grpo_stream.errors import ConfigError, ImageError, ManifestError
from grpo_stream.grounding.prompts import TEMPLATES
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.cluster.launched_training import model_init_kwargs
from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.observe.metrics import short_line
from grpo_stream.train.setup.arguments import DataArguments
from grpo_stream.train.setup.memory.group_memory import Batch
from grpo_stream.train.setup.memory.memory_estimate import Zero, estimate
from grpo_stream.train.setup.memory.micro_batches import bytes_of_joining
from grpo_stream.train.setup.memory.model_sizes import MetaModel, find_config
from grpo_stream.train.setup.open_data import (
    check_all_have_images,
    open_source,
    open_sources,
    stream_config,
)
from grpo_stream.train.setup.run_plan import parse_settings, plan_run
from grpo_stream.train.setup.run_summary import describe_prompt
from shard_builder.datasets.index_tars import index_tars
from tests.train.support import write_mixed_set, write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("launching"), 11)


def settings(shapes, *flags):
    words = ["--model_name_or_path", "some/model", "--shards", str(shapes.shards)]
    words += ["--output_dir", "out", "--per_device_train_batch_size", "4"]
    words += ["--num_generations", "4", "--report_to", "none", *flags]
    return parse_settings(words, use_cpu=True)


def test_a_plan_needs_no_max_steps(shapes):
    plan = plan_run(settings(shapes, "--num_ranks", "2", "--num_train_epochs", "3"))
    assert plan.num_lanes == 2
    assert plan.num_batches == 5
    assert plan.max_steps == 15
    text = plan.describe()
    assert "11 in 3 shards" in text
    assert "5 generation batches, 1 samples in reserve" in text


def test_several_data_sets_with_weights(shapes, tmp_path):
    other = write_shapes(tmp_path, 8).shards
    words = ["--shards", f"{shapes.shards}=0.75", f"{other}=0.25", "--num_ranks", "4"]
    plan = plan_run(settings(shapes, *words, "--max_pixels", "12544"))
    assert plan.num_batches == (11 + 8) // 4
    text = plan.describe()
    assert (
        "11 in 3 shards; 3/4 of the prompts, 3 of each generation batch, begins again after 3"
        in (text)
    )
    assert "1/4 of the prompts, 1 of each generation batch, begins again after 8" in text
    assert "at most 0.11 MB a rank: 3 images of up to 12,544 pixels" in text
    with pytest.raises(ConfigError, match="each only once"):
        plan_run(settings(shapes, "--shards", str(shapes.shards), str(shapes.shards)))


@pytest.mark.parametrize("in_list", [False, True])
def test_shards_in_a_file_are_one_or_a_list(shapes, tmp_path, in_list):
    config = tmp_path / "run.yaml"
    value = [str(shapes.shards)] if in_list else str(shapes.shards)
    config.write_text(json.dumps({"shards": value, "fetch_ahead_bytes": 1_000_000}))
    words = ["--model_name_or_path", "some/model", "--per_device_train_batch_size", "4"]
    words += ["--num_generations", "4", "--num_decode_processes", "1", "--config", str(config)]
    plan = plan_run(parse_settings(words, use_cpu=True))
    assert plan.data_sets.names == [str(shapes.shards)]
    assert "3 decoded images and 1 MB fetched ahead" in plan.describe()


def test_a_cache_is_checked_and_shown(shapes, tmp_path):
    folder = tmp_path / "cache"
    text = plan_run(settings(shapes, "--cache_dir", str(folder), "--cache_bytes", "1GB")).describe()
    assert f"{folder}, at most 1,000 MB a machine" in text
    with pytest.raises(ConfigError, match="cache_bytes=1: must hold at least the largest shard"):
        plan_run(settings(shapes, "--cache_dir", str(folder), "--cache_bytes", "1"))


def test_settings_reach_the_stream(shapes, tiny_folder):
    flags = ["--fetch_ahead_bytes", "1MiB", "--max_image_pixels", "9", "--num_fetch_threads", "3"]
    flags += ["--num_decode_processes", "1", "--max_sample_bytes", "2KB", "--stream_seed", "7"]
    data = settings(shapes, *flags).data
    config = stream_config(data, num_lanes=2, seed=1, rule=None)
    assert (config.fetch_ahead_bytes, config.max_sample_bytes) == (2**20, 2000)
    assert (config.num_fetch_threads, config.num_decode_processes, config.stream_seed) == (3, 1, 7)
    assert config.limits.max_image_pixels == 9


def test_images_of_records_are_held_to_the_limit(shapes, tmp_path):
    (tmp_path / "records.json").write_text(json.dumps(shapes.records[:1]))
    data = DataArguments(
        json=str(tmp_path / "records.json"), images_root=str(shapes.images), max_image_pixels=99
    )
    with pytest.raises(ImageError, match="image_too_large"):
        open_source(data).fetch(0, [0])


def test_evaluation_is_of_one_data_set(shapes):
    with pytest.raises(ConfigError, match="one data set at a time"):
        open_source(DataArguments(shards=[str(shapes.shards), "other"]))


def test_what_the_chat_template_makes_of_its_variables(shapes, tiny_folder):
    flags = ["--model_name_or_path", str(tiny_folder), "--num_ranks", "1"]
    assert plan_run(settings(shapes, *flags)).notes == []
    flags += ["--chat_template_kwargs", '{"enable_thinking": false}']
    text = plan_run(settings(shapes, *flags)).describe()
    assert "note: chat_template_kwargs: the model's chat template knows no enable_thinking" in text


def test_a_chat_template_without_room_for_images(shapes, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'][-1]['text'] }}")
    with pytest.raises(ConfigError, match="the chat template has no room for it"):
        plan_run(settings(shapes, "--model_name_or_path", str(folder), "--num_ranks", "1"))


def test_max_steps_wins(shapes):
    assert plan_run(settings(shapes, "--max_steps", "7")).max_steps == 7


def test_micro_steps_of_a_generation_share_its_prompts(shapes):
    flags = ["--steps_per_generation", "2", "--gradient_accumulation_steps", "2"]
    plan = plan_run(settings(shapes, *flags, "--num_iterations", "2"))
    assert plan.num_lanes == 2
    # 5 generation batches x 2 micro-steps x 2 iterations, 2 micro-steps an update, 3 epochs
    assert plan.max_steps == 30


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reward_funcs", "nope"], "accuracy_reward_coord"),
        (["--prompt_template", "nope"], "point"),
        (["--json", "x.json"], "exactly one of"),
        (["--reward_weights", "1", "2"], "one weight each"),
        (["--eval_strategy", "steps", "--eval_steps", "1"], "needs eval_shards"),
        (["--num_generations", "3"], r"num_generations=3.*use num_generations="),
        (["--per_device_train_batch_size", "6"], r"num_generations=4.*use "),
        (["--num_ranks", "12"], "only 11 samples"),
        (["--deepspeed", "nope.json"], "ds_configs/zero3.json"),
        (["--config", "nope.yaml"], "launch/configs/"),
        (["--model_name_or_path", "/no/such/folder"], "'/no/such/folder': does not exist"),
        (["--model_name_or_path", "runs/no/such"], "'runs/no/such': does not exist"),
        (["--model_name_or_path", "./pyproject.toml"], "is no folder"),
        (["--model_name_or_path", "tests"], "model_name_or_path='tests'"),
        (["--load_in_4bit", "true"], "load_in_4bit"),
        (["--answer_frame", "nope"], "per_mille"),
        (["--shared_prefix", "maybe"], "auto, on, packed, forked, off"),
        (["--shared_prefix_attention", "fast"], "auto, two_part, dense, flex"),
        (["--shared_prefix_attention", "flex"], "use two_part"),
        (["--vision_attn_implementation", "flash_attention_9"], "flash_attention_2"),
        (["--block_shards", "0"], "block_shards=0"),
        (["--num_reader_threads", "-1"], "num_reader_threads=-1"),
        (["--num_decode_processes", "-1"], "num_decode_processes=-1"),
        (["--retry_deadline_seconds", "0"], "retry_deadline_seconds=0"),
        (["--fetch_ahead_bytes", "much"], "fetch_ahead_bytes='much'.*as in 256MiB"),
        (["--max_sample_bytes", "0"], "max_sample_bytes='0'"),
        (["--cache_bytes", "-1"], "cache_bytes='-1'.*as in 64GiB"),
        (["--max_image_pixels", "0"], "max_image_pixels=0.*for example 100000000"),
        (["--shards", "a=0.5", "b"], "shards='b'.*write 0.3:b"),
        (["--eval_shards", "a=0.5", "b"], "eval_shards='b'.*write 0.3:b"),
        (["--use_vllm", "true"], "use_vllm"),
        (["--use_transformers_continuous_batching", "true"], "once per completion"),
    ],
)
def test_mistakes_are_named_with_what_works(shapes, flags, message):
    with pytest.raises(ConfigError, match=message):
        plan_run(settings(shapes, *flags))


def test_an_unknown_flag_is_named(shapes):
    with pytest.raises(ConfigError, match="bogus='1': is no setting"):
        settings(shapes, "--bogus", "1")


def test_no_manifest_no_data(shapes, tmp_path):
    with pytest.raises(ManifestError, match="shard-builder build"):
        plan_run(settings(shapes, "--shards", str(tmp_path)))


def test_records_instead_of_shards(shapes, tmp_path):
    records = tmp_path / "records.json"
    records.write_text('[{"image": "a.png", "prompt": "p", "solution": [1, 2, 3, 4]}]')
    words = ["--model_name_or_path", "m", "--output_dir", "out", "--json", str(records)]
    words += ["--per_device_train_batch_size", "8", "--num_generations", "8"]
    with pytest.raises(ConfigError, match="images_root"):
        plan_run(parse_settings(words, use_cpu=True))
    plan = plan_run(parse_settings([*words, "--images_root", str(tmp_path)], use_cpu=True))
    assert plan.num_batches == 1


def test_flags_win_over_the_file_and_the_launchers_rank_is_dropped(shapes, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("learning_rate: 3.0e-5\nseed: 5\n")
    parsed = settings(shapes, "--config", str(config), "--seed", "6", "--local_rank=0")
    assert parsed.args.learning_rate == 3e-5
    assert parsed.args.seed == 6


def test_without_a_gpu_the_run_takes_the_cpu_in_float32(shapes):
    args = settings(shapes).args
    assert args.use_cpu
    assert not args.bf16


def test_short_line_shows_what_one_watches():
    line = short_line(3, {"reward": 0.25, "step_time": 1.5, "loss": 9.0, "grad_norm": None})
    assert line == "global step 3: reward 0.25, step (s) 1.5"
    assert short_line(3, {"train_runtime": 1.0}) == ""


def test_eval_shards_are_looked_at(shapes, tmp_path):
    with pytest.raises(ManifestError):
        plan_run(settings(shapes, "--eval_shards", str(tmp_path)))


def test_the_folder_of_a_policy_is_looked_at(shapes, tiny_folder):
    model = ["--model_name_or_path", str(tiny_folder)]
    plan_run(settings(shapes, *model))
    with pytest.raises(ConfigError, match="max_pixels=5"):
        plan_run(settings(shapes, *model, "--max_pixels", "5"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--answer_frame", "per_mille"], ["of sample 0", "user: <image>", "is 1000x1000 pixels."]),
        (
            ["--prompt_template", "box_thinking"],
            ["model's is not known yet", "system: First think"],
        ),
        (["--answer_frame", "model"], ["model's is not known yet", "is 112x112 pixels."]),
    ],
)
def test_a_dry_run_shows_the_first_prompt(shapes, flags, words):
    text = plan_run(settings(shapes, *flags, "--dry_run", "true")).describe()
    assert [word for word in words if word not in text] == []
    assert "user:" not in plan_run(settings(shapes, *flags)).describe()


def test_the_first_prompt_is_in_the_policys_words_and_sizes(shapes, tiny_folder):
    words = ["--model_name_or_path", str(tiny_folder), "--dry_run", "true", "--max_pixels", "3136"]
    text = plan_run(settings(shapes, *words)).describe()
    assert "is 56x56 pixels." in text
    assert "not known" not in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "auto: packed, attention two_part (proves itself first, else forked, else plain)"),
        (["--shared_prefix", "off"], "off"),
        (["--shared_prefix_attention", "dense"], "auto: packed, attention dense (proves"),
        (["--freeze_vision_tower", "true"], "features of the frozen vision tower once per prompt"),
        (["--attn_implementation", "flash_attention_2"], "auto: forked (proves itself first, "),
        (["--shared_prefix", "forked", "--shared_prefix_check", "false"], "forked (unproven)"),
    ],
)
def test_how_groups_are_computed_is_shown(shapes, tiny_folder, flags, words):
    folder = ["--model_name_or_path", str(tiny_folder)]
    (line,) = [
        value
        for label, value in plan_run(settings(shapes, *folder, *flags)).lines
        if label == "shared prefix"
    ]
    assert words in line


def test_shared_prefix_is_refused_where_it_cannot_be(shapes, tiny_folder):
    words = ["--model_name_or_path", str(tiny_folder), "--shared_prefix", "packed"]
    plan_run(settings(shapes, *words))
    with pytest.raises(ConfigError, match="knows no shared prefix; use 'sdpa'; use 'auto'"):
        plan_run(settings(shapes, *words, "--attn_implementation", "flash_attention_2"))


def test_a_first_sample_that_cannot_be_read_is_shown(shapes, tmp_path):
    (tmp_path / "records.json").write_text(json.dumps(shapes.records))
    data = DataArguments(json=str(tmp_path / "records.json"), images_root=str(tmp_path))
    label, value = describe_prompt(open_sources(data), TEMPLATES["point"], "per_mille", None)
    assert label == "first prompt"
    assert value.startswith("cannot be shown: image_not_found")


@pytest.mark.parametrize(
    ("ddp_timeout", "names"),
    [
        (1800, []),
        (1200, ["step_timeout_seconds=1200"]),
        (60, ["step_timeout_seconds=1200", "retry_deadline_seconds=120"]),
    ],
)
def test_a_short_wait_for_other_ranks_is_noted(shapes, ddp_timeout, names):
    flags = ["--ddp_timeout", str(ddp_timeout)]
    notes = plan_run(settings(shapes, "--num_ranks", "2", *flags)).notes
    found = [note for note in notes if "ddp_timeout" in note]
    assert [
        f"ddp_timeout={ddp_timeout} is not above {name}" in note
        for name, note in zip(names, found, strict=True)
    ] == [True] * len(names)
    assert not any("ddp_timeout" in note for note in plan_run(settings(shapes, *flags)).notes)


def test_how_a_policy_is_loaded(shapes):
    assert model_init_kwargs(settings(shapes)) == {"revision": "main", "dtype": "float32"}
    flags = ["--attn_implementation", "eager", "--dtype", "bfloat16"]
    found = model_init_kwargs(settings(shapes, *flags))
    assert found == {"revision": "main", "dtype": "bfloat16", "attn_implementation": "eager"}
    found = model_init_kwargs(settings(shapes, "--model_init_kwargs", '{"dtype": "float16"}'))
    assert found == {"revision": "main", "dtype": "float16"}


@pytest.mark.parametrize(("wanted", "text"), [("false", "off: flash"), ("true", "on")])
def test_the_plan_says_and_sets_which_attention_kernels(shapes, wanted, text):
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        lines = dict(plan_run(settings(shapes, "--cudnn_attention", wanted)).lines)
        assert lines["cuDNN attention"].startswith(text)
        assert torch.backends.cuda.cudnn_sdp_enabled() == (wanted == "true")
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_on)


@pytest.mark.parametrize(
    ("flags", "advised"),
    [
        (["--gradient_accumulation_steps", "2"], 8),
        (["--gradient_accumulation_steps", "2", "--shared_prefix", "off"], None),
        (["--gradient_accumulation_steps", "1", "--steps_per_generation", "2"], None),
        (["--gradient_accumulation_steps", "1"], None),
    ],
)
def test_a_dry_run_advises_micro_batches_of_several_groups(shapes, flags, advised):
    wanted = [] if advised is None else [f"per_device_train_batch_size={advised}, "]
    for is_dry in ("true", "false"):  # on a CPU a run itself has nothing of it
        notes = plan_run(settings(shapes, *flags, "--dry_run", is_dry)).notes
        found = [note for note in notes if note.startswith("per_device_train_batch_size=")]
        assert len(found) == len(wanted) * (is_dry == "true")
        assert all(note.startswith(one) for note, one in zip(found, wanted, strict=False))
        assert all("where memory allows" in note for note in found)  # of an unknown model


def test_the_advice_names_what_it_costs(shapes):
    """By the estimate of the same model and the same groups, as the command that it names."""
    flags = ["--model_name_or_path", "some/Qwen2.5-VL-3B", "--max_pixels", "1003520", "--bf16"]
    flags += ["true", "--num_generations", "8", "--per_device_train_batch_size", "8"]
    flags += ["--max_completion_length", "64", "--gradient_accumulation_steps", "4"]
    notes = plan_run(settings(shapes, *flags, "--num_ranks", "2", "--dry_run", "true")).notes
    (note,) = (one for one in notes if "same global step" in one)
    assert "launch/estimate.py --groups-per-micro-step 4" in note
    model, zero, batch = MetaModel(find_config("3B")), Zero(2), Batch()
    one, four = (
        estimate(model, zero, replace(batch, groups_per_micro_step=number)).update_peak
        for number in (1, 4)
    )
    assert bytes_of_joining(model, zero, batch, 4) == four - one
    assert f"for {(four - one) / 1e9:.1f} GB more of each GPU" in note
    assert four - one > 1e9


def test_groups_that_are_computed_one_after_another_are_not_advised(shapes, tmp_path):
    make_tiny_policy(tmp_path, ["click"], family="gemma3")
    words = ["--model_name_or_path", str(tmp_path), "--gradient_accumulation_steps", "2"]
    notes = plan_run(settings(shapes, *words, "--dry_run", "true")).notes
    assert not any("same global step" in note for note in notes)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = write_mixed_set(tmp_path_factory.mktemp("mixed"), 16)
    index_tars(folder, overwrite=True)  # which counts them
    return folder


class TestImages:
    """What is refused of samples that have not exactly one image, before a model is loaded."""

    def test_a_template_for_one(self, shapes, mixed, tmp_path):
        template = tmp_path / "own.yaml"
        template.write_text("user: '{width}: {instruction}'")
        words = ["--prompt_template", str(template), "--shards"]
        plan_run(settings(shapes, *words, str(shapes.shards)))
        with pytest.raises(ConfigError, match=r"prompt_template='8 samples of several .*{sizes}"):
            plan_run(settings(shapes, *words, str(mixed)))
        plan_run(settings(shapes, "--shards", str(mixed)))

    def test_records(self, tmp_path):
        rows: list[Any] = [
            {"image": ["a", "b"]},
            {"image": []},
            {"image": None},
            {"image": "a"},
            {},
        ]
        source = RecordSource(rows, tmp_path)
        assert (source.num_multi_image, source.num_text_only) == (1, 2)
        with pytest.raises(ConfigError, match=r"shards='2 samples without images': .* one"):
            check_all_have_images([source], 2)
        check_all_have_images([source], 1)

    def test_pixels_of_a_sample(self, mixed):
        data = DataArguments(shards=[str(mixed)], max_total_pixels=112 * 84)
        config = stream_config(data, num_lanes=4, seed=0, rule=None)
        stream = PromptStream(open_source(data), config)
        outcomes = [stream.attempt(place) for place in stream.slot_places(0, 0)]
        bad = [one for one in outcomes if isinstance(one, ImageError)]
        sound = [one for one in outcomes if isinstance(one, StreamSample)]
        assert {one.cause for one in bad} == {"images_too_large"}
        assert len(sound) + len(bad) == 4
        assert all(len(one.images) < 2 for one in sound)
