import json
from dataclasses import replace

import pytest

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.grounding.evaluation.evaluation_files import write_run
from grpo_stream.grounding.prompts import TEMPLATES
from grpo_stream.stream.world import World
from grpo_stream.train.checkpoints.task_file import Task
from grpo_stream.train.evaluate.evaluation_arguments import EvaluateArguments
from grpo_stream.train.evaluate.evaluation_plan import plan_evaluation
from tests.grounding.support import answer


@pytest.fixture
def plan(tiny_folder, shapes, tmp_path):
    def planned(world=None, **changes):
        settings = {
            "model": str(tiny_folder),
            "shards": str(shapes.shards),
            "report": str(tmp_path / "report"),
        }
        return plan_evaluation(EvaluateArguments(**(settings | changes)), world or World())

    return planned


def test_defaults_are_those_of_training(plan, shapes):
    made = plan()
    assert made.task == Task(TEMPLATES["point"], "model")
    assert made.data_names == [str(shapes.shards)]
    assert "source" in made.fields
    assert not (made.args.report and made.others)


def test_settings_reach_where_they_act(plan):
    made = plan(answer_frame="per_mille", prompt_template="box", max_pixels=12544, by=["colour"])
    assert made.task == Task(TEMPLATES["box"], "per_mille")
    assert made.processor.image_processor.size["longest_edge"] == 12544
    assert made.fields[0] == "colour"


def test_a_checkpoint_tells_how_it_was_asked(plan, make_trainer, tmp_path):
    trainer = make_trainer(prompt_template="box_pairs_thinking", answer_frame="original")
    checkpoint = str(tmp_path / "checkpoint")
    trainer.save_model(checkpoint)
    own = Task(TEMPLATES["box_pairs_thinking"], "original")
    assert plan(model=checkpoint).task == own
    assert plan(model=checkpoint, answer_frame="model").task == replace(own, answer_frame="model")
    changed = plan(model=checkpoint, prompt_template="plain").task
    assert changed == Task(TEMPLATES["plain"], "original")


def test_variables_of_the_chat_template(plan, make_trainer, make_args, tmp_path):
    """Those of a flag, or else the checkpoint's."""
    trainer = make_trainer(make_args(chat_template_kwargs={"enable_thinking": False}))
    checkpoint = str(tmp_path / "checkpoint")
    trainer.save_model(checkpoint)
    told = plan(model=checkpoint)
    assert told.task.chat_template_kwargs == {"enable_thinking": False}
    assert "knows no enable_thinking" in told.notes[0]
    made = plan(model=checkpoint, chat_template_kwargs='{"depth": 2}')
    assert made.task.chat_template_kwargs == {"depth": 2}
    assert plan(model=checkpoint, chat_template_kwargs={}).notes == []
    with pytest.raises(ConfigError, match="chat_template_kwargs"):
        plan(chat_template_kwargs="depth")


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"report": "s3://bucket/report"}, "report", "folder on this machine"),
        ({"model": "no/such/folder"}, "model_name_or_path", "does not exist"),
        ({"shards": None}, "shards", "exactly one of shards and json"),
        ({"json": ["x.json"]}, "shards", "exactly one of shards and json"),
        ({"shards": None, "json": ["x.json"]}, "json", "x.json"),
        ({"format": "screenspot"}, "format", "goes with json"),
        ({"by": ["color"]}, "by", "is no field of the samples; they have colour, shape"),
        ({"prompt_template": "boxes"}, "prompt_template", "must be one of point"),
        ({"answer_frame": "pixels"}, "answer_frame", "must be one of original"),
        ({"batch_size": 0}, "batch_size", "at least 1, for example 16"),
        ({"num_resamples": 10}, "num_resamples", "at least 100, for example 2000"),
        ({"num_processes": 0}, "num_processes", "at least 1"),
        ({"point_radius": 0.0}, "point_radius", "for example 0.05"),
        ({"device": "gpu"}, "device", "auto, cpu or cuda"),
        ({"dtype": "bf16"}, "dtype", "bfloat16"),
        ({"max_sample_bytes": "many"}, "max_sample_bytes", "must be a size"),
        ({"compare": ["nowhere"]}, "compare", "is no report of an evaluation"),
    ],
)
def test_mistakes_are_told_before_the_policy_is_loaded(plan, changes, field, words, monkeypatch):
    monkeypatch.setattr("grpo_stream.train.models.policy.load_policy", lambda *_, **__: 1 / 0)
    with pytest.raises(ConfigError, match=words) as caught:
        plan(**changes)
    assert caught.value.field == field


def test_ranks_are_started_by_one_launcher(plan):
    assert plan(World(1, 2)).world.rank == 1
    with pytest.raises(ConfigError, match="which has started 2 ranks"):
        plan(World(0, 2), num_processes=2)


def test_the_report_folder(plan, tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        plan(report=str(tmp_path / "a/b"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        plan(report=str(tmp_path / "file"))
    report = tmp_path / "report"
    report.mkdir()
    plan()
    write_run(report, {}, [answer("")], "")
    with pytest.raises(ConfigError, match=r"holds results.*--overwrite"):
        plan()
    plan(overwrite=True)


def test_points_need_a_radius(plan, shapes, tmp_path):
    records = [record | {"solution": [5, 5]} for record in shapes.records[:2]]
    (tmp_path / "data.json").write_text(json.dumps(records))
    source = {
        "shards": None,
        "json": [str(tmp_path / "data.json")],
        "images_root": str(shapes.images),
    }
    with pytest.raises(ConfigError, match="point_radius=None: is needed: the solution of"):
        plan(**source)
    assert plan(**source, point_radius=0.1).source.shard_counts.tolist() == [2]


def test_only_reports_of_the_same_samples_are_compared(plan, tmp_path):
    digest = plan().source.digest
    other = tmp_path / "other"
    write_run(other, {"model": "m", "data": {"digest": digest}}, [answer("")], "")
    assert plan(compare=[str(other)]).others[0].answers == [answer("")]
    write_run(other, {"model": "m", "data": {"digest": "0" * 64}}, [answer("")], "")
    with pytest.raises(GrpoStreamError, match="of other samples"):
        plan(compare=[str(other)])
