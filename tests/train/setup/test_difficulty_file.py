"""What an earlier run found hard decides how often samples come, exactly on resume."""

import json

import pytest

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.grounding.evaluation.answer_metrics import with_samples
from grpo_stream.stream.world import World
from grpo_stream.train.setup.arguments import DataArguments
from grpo_stream.train.setup.difficulty_file import (
    DifficultySettings,
    read_weights,
    select_by_difficulty,
)
from grpo_stream.train.setup.open_data import make_stream, open_sources, stream_config
from grpo_stream.train.setup.run_summary import describe_data
from tests.grounding.support import answer
from tests.train.runs import NUM_LANES, SAVING, run

KEYS = [f"{number:06d}" for number in range(13)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def logged(key, mean, step=0):
    return {"key": key, "global_step": step, "mean": mean, "std": 0.1}


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, [0.1, 0.75, 1, 0.1, 0.1]),
        ({"rule": "hard"}, [2, 1.5, 1, 0.1, 0.1]),
        ({"keep": (0.25, 0.5)}, [0, 1, 1, 0, 0]),
        ({"keep": (0, 2)}, [1, 1, 1, 1, 1]),
    ],
)
def test_the_log_of_a_run(tmp_path, settings, weights):
    means = [0.0, 0.25, 0.5, 1.0, 1.5]
    path = write(tmp_path / "difficulty.jsonl", list(map(logged, KEYS, means)))
    found = read_weights(DifficultySettings(path, **settings))
    assert list(found) == KEYS[:5]
    assert list(found.values()) == pytest.approx(weights)
    assert read_weights(DifficultySettings(str(tmp_path), **settings)) == found


def test_the_last_rollout_counts(tmp_path):
    rows = [logged("a", 0.5, 3), logged("a", 1.0, 9), logged("a", 0.0, 3), logged("b", 1.0)]
    rows += [logged("b", 0.5), logged("c", None), logged("d", 0.5, 1), logged("d", None, 2)]
    path = tmp_path / "difficulty.jsonl"
    write(path, rows)
    with path.open("a") as file:
        file.write('{"key": "e", "global_s')  # cut off
    found = read_weights(DifficultySettings(str(path), "hard"))
    assert found == {"a": 0.1, "b": 1.0, "d": 1.0}


def test_the_answers_of_an_evaluation(tmp_path):
    hit, miss = answer("(150, 150)", key="hit"), answer("(0, 0)", key="miss")
    voted = with_samples(answer("(0, 0)", key="voted"), [hit, miss, miss, miss])
    absent = answer("not found", (), key="absent", wanted="none")
    unknown = answer("(1, 1)", (5, 5, 5, 5), key="unknown")  # without area: neither right nor wrong
    report = tmp_path / "report"
    report.mkdir()
    rows = [one.to_dict() for one in (hit, miss, voted, absent, unknown)]
    write(report / "answers.jsonl", rows)
    found = read_weights(DifficultySettings(str(report), "hard"))
    assert found == {"hit": 0.1, "miss": 2, "voted": 1.5, "absent": 0.1}


def test_weights_of_ones_own(tmp_path):
    path = write(tmp_path / "w.jsonl", [{"key": "a", "weight": 2.5}, {"key": "b", "weight": 0}])
    assert read_weights(DifficultySettings(path)) == {"a": 2.5, "b": 0}


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        (None, {}, "is no file, and no folder with answers.jsonl or difficulty.jsonl"),
        ("no\n", {}, "line 1 is no JSON"),
        ("[1]\n", {}, "line 1 is no JSON object"),
        ('{"key": "a"}\n', {}, "line 1 is none of"),
        ('{"weight": 1}\n', {}, "line 1 is none of"),
        ('{"key": 7, "weight": 1}\n', {}, "key=7 is no text"),
        ('{"key": "a", "weight": 101}\n', {}, "weight=101"),
        ('{"key": "a", "weight": NaN}\n', {}, "weight=nan"),
        ('{"key": "a", "weight": 1}\n', {"keep": (0, 1)}, "difficulty_keep does not go with"),
        ('{"key": "a", "global_step": 1, "mean": Infinity}\n', {}, "mean=inf"),
    ],
)
def test_files_that_are_none(tmp_path, text, settings, words):
    path = tmp_path / "file.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_weights(DifficultySettings(str(path), **settings))
    assert caught.value.field == "difficulty"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"difficulty_keep": [0, 1]}, "difficulty_keep"),
        ({"difficulty": "f", "difficulty_keep": [0.5]}, "difficulty_keep"),
        ({"difficulty": "f", "difficulty_keep": [0.5, 0.1]}, "difficulty_keep"),
        ({"difficulty": "f", "difficulty_other": -1.0}, "difficulty_other"),
        ({"difficulty": "f", "shards": ["a", "b"]}, "difficulty"),
    ],
)
def test_settings_that_cannot_work(settings, field):
    with pytest.raises(ConfigError) as caught:
        DataArguments(**({"shards": ["a"]} | settings)).check()
    assert caught.value.field == field


def data_of(shapes, path, **changes):
    return DataArguments(shards=[str(shapes.shards)], difficulty=path, **changes)


def test_a_choice_is_said(shapes, tmp_path):
    path = write(tmp_path / "w.jsonl", [{"key": key, "weight": 0} for key in KEYS[:4]])
    data = data_of(shapes, path, difficulty_other=2.0)
    found = open_sources(data)
    config = stream_config(data, num_lanes=4, seed=0, rule=None)
    words = describe_data(found, found.plan(config))[0][1]
    assert "18 in 4 shards" in words
    assert "4 of 13 samples are known; 9 are in, 18 places an epoch" in words
    assert open_sources(data).sources[0].digest == found.sources[0].digest


def test_a_choice_of_nothing_is_refused(shapes, tmp_path):
    other = write(tmp_path / "a.jsonl", [{"key": "000077", "weight": 1}])
    with pytest.raises(ConfigError, match="none of which is in this data set"):
        open_sources(data_of(shapes, other))
    none = write(tmp_path / "b.jsonl", [{"key": key, "weight": 0} for key in KEYS])
    with pytest.raises(ConfigError, match="leaves no sample"):
        open_sources(data_of(shapes, none))


def test_raw_records_have_keys_too(shapes, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(shapes.records))
    data = DataArguments(json=str(tmp_path / "data.json"), images_root=str(shapes.images))
    (source,) = open_sources(data).sources
    path = write(tmp_path / "w.jsonl", [{"key": source.read(0, 3).key, "weight": 5}])
    chosen = select_by_difficulty(source, DifficultySettings(path, other=0))
    assert chosen.shard_counts.tolist() == [5]
    assert chosen.read(0, 4) == source.read(0, 3)


@pytest.mark.slow(reason="four short trainings")
def test_a_resume_is_exact_and_of_the_same_file_alone(
    make_trainer, make_args, processor, shapes, tmp_path
):
    def stream(path):
        data = data_of(shapes, path, num_reader_threads=1)
        kinds = {"seed": 0, "image_processor": processor.image_processor, "world": World()}
        return make_stream(open_sources(data), data, num_lanes=NUM_LANES, **kinds)

    rows = [{"key": key, "weight": number % 3} for number, key in enumerate(KEYS)]
    path = write(tmp_path / "w.jsonl", rows)
    whole = make_args(**SAVING | {"save_strategy": "no"})
    _, expected = run(make_trainer, whole, train_dataset=stream(path))
    args = {"args": make_args(**SAVING)}
    _, first = run(make_trainer, **args, stop_after=2, train_dataset=stream(path))
    _, rest = run(make_trainer, **args, resume_from=True, train_dataset=stream(path))
    assert first + rest == expected
    assert {key for batch in expected for key in batch} <= {key for key in KEYS if int(key) % 3}
    changed = write(tmp_path / "w.jsonl", rows[1:])
    with pytest.raises(CursorError, match="the choice of its samples"):
        run(make_trainer, **args, resume_from=True, train_dataset=stream(changed))
