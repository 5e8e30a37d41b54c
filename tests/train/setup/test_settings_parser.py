import os
import re
from dataclasses import dataclass, fields
from typing import Any

import pytest
from trl import GRPOConfig, ModelConfig

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.images import ImageLimits
from grpo_stream.storage.retry_policy import RetryRules
from grpo_stream.stream.config import CacheSettings, StreamConfig
from grpo_stream.train.evaluate.evaluation_arguments import EvaluateArguments
from grpo_stream.train.setup.arguments import (
    DataArguments,
    LogArguments,
    RunArguments,
    TaskArguments,
)
from grpo_stream.train.setup.settings_parser import SettingsParser

OWN = (DataArguments, TaskArguments, LogArguments, RunArguments)
TYPES = (*OWN, GRPOConfig, ModelConfig)


@pytest.fixture(scope="module")
def make():
    return lambda: SettingsParser(*TYPES, description="Trains.\n\n    as written")


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return ["--config", str(path)]

    return write


class TestFlags:
    @pytest.mark.parametrize(
        "flags",
        [
            ["--num_reader_threads", "5", "--max_pixels=99"],
            ["--num-reader-threads", "5", "--max-pixels=99"],
        ],
    )
    def test_in_both_spellings(self, make, flags):
        found = make().read(flags)
        assert (found.num_reader_threads, found.max_pixels) == (5, 99)

    def test_the_launchers_flag_is_dropped(self, make):
        assert not hasattr(make().read(["--local_rank=3"]), "config")

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--num_generations", "x"], "num_generations='x': must be a whole number, for exam"),
            (["--max_pixels", "1.5"], "max_pixels='1.5': must be a whole number, for example 8"),
            (["--learning_rate=fast"], "learning_rate='fast': must be a number, for example 1e-06"),
            (["--bf16", "maybe"], "bf16='maybe': must be true or false"),
            (["--eval_strategy", "never"], "eval_strategy='never': must be one of no, steps, epo"),
            (
                ["--shared_prefix", "maybe"],
                "shared_prefix='maybe': must be one of auto, on, packed, forked, off",
            ),
            (["--max_steps"], "max_steps=None: expected one argument: a whole number, for example"),
            (["--shards", "--bf16", "true"], "shards=None: expected at least one argument: text"),
            (["--bogus"], "bogus=None: is no setting; --help lists all"),
            (["--no-such=3"], "no_such='3': is no setting;"),
            (["--max_pixel", "3"], "max_pixel='3': is no setting; did you mean max_pixels?"),
            (
                ["--num_threads", "3"],
                "is called num_reader_threads now; write num_reader_threads=3",
            ),
            (["stray"], "flags='stray': belongs to no flag"),
            (["--config", "nope.yaml"], "config='nope.yaml': is no file; see launch/configs/"),
            (["--config"], "config='.': is no file"),
        ],
    )
    def test_mistakes(self, make, flags, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            make().read(flags)

    def test_what_is_needed(self):
        with pytest.raises(ConfigError, match=r"report=None: is needed, as in --report VALUE: Fol"):
            SettingsParser(EvaluateArguments).read(["--model", "m"])

    def test_what_a_class_refuses(self):
        @dataclass
        class Picky:
            size: int = 3

            def __post_init__(self):
                raise ValueError("it is Tuesday")

        with pytest.raises(GrpoStreamError, match="the settings cannot be used: it is Tuesday"):
            SettingsParser(Picky).parse([])


class TestFile:
    @pytest.mark.parametrize(
        ("text", "name", "value"),
        [
            ("learning_rate: 1e-6", "learning_rate", 1e-6),  # YAML reads a word
            ("num_train_epochs: 2", "num_train_epochs", 2),
            ("reward_funcs: format_reward", "reward_funcs", ["format_reward"]),
            ("reward_weights: 1", "reward_weights", [1.0]),
            ("shards: [a, b]", "shards", ["a", "b"]),
            ("report_to: [tensorboard]", "report_to", ["tensorboard"]),
            ("model_init_kwargs: {revision: main}", "model_init_kwargs", {"revision": "main"}),
            ("max_pixels: null", "max_pixels", None),
            # YAML 1.1 reads these words as true and false.
            ("shared_prefix: off", "shared_prefix", "off"),
            ("shared_prefix: on", "shared_prefix", "on"),
            ("eval_strategy: no", "eval_strategy", "no"),
            ("bf16: yes", "bf16", True),
            ("eval_on_start: true", "eval_on_start", True),
        ],
    )
    def test_values(self, make, file, text, name, value):
        found = getattr(make().read(file(text)), name)
        assert (found, type(found)) == (value, type(value))

    def test_flags_win(self, make, file):
        words = [*file("seed: 5\nbf16: true"), "--seed", "6", "--bf16=false"]
        found = make().read(words)
        assert (found.seed, found.bf16) == (6, False)

    def test_the_environment(self, make, file, monkeypatch):
        monkeypatch.setenv("SOME_NAME", "before")
        make().read(file("env: {SOME_NAME: 3}"))
        assert os.environ["SOME_NAME"] == "3"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("learning_rat: 3", "learning_rat=3: is no setting; did you mean learning_rate?"),
            ("dev_shards: d", "dev_shards='d': is called eval_shards now; write eval_shards=d"),
            ("max_steps: [1]", "max_steps=[1]: must be a whole number, for example"),
            ("num_train_epochs: null", "num_train_epochs=None: must be a number, for example"),
            ("max_steps: 2.5", "max_steps='2.5': must be a whole number"),
            ("max_steps: true", "max_steps='True': must be a whole number"),
            ("reward_weights: [1, x]", "reward_weights='x': must be a number, for example 0.5"),
            ("images_root: {a: 1}", "images_root={'a': 1}: must be text"),
            ("save_strategy: yes", "save_strategy='True': must be one of no, steps, epoch, best"),
            ("a: [", "is no YAML (while parsing"),
            ("- 1", 'must hold lines such as "learning_rate: 1.0e-6"'),
            ("", "must hold lines such as"),
            ("help: 1", "help=1: is no setting"),
        ],
    )
    def test_mistakes(self, make, file, text, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            make().read(file(text))


@pytest.fixture(scope="module")
def text(make):
    return make().format_help()


class TestHelp:
    def test_this_projects_flags_come_first_then_trls_then_transformers(self, text):
        titles = re.findall(r"^(\S.*?):.*\n  --", text, re.MULTILINE)
        own = [one.__name__ for one in OWN]
        theirs = ["trl.GRPOConfig", "trl.ModelConfig", "transformers.TrainingArguments"]
        assert titles == [*own, *theirs]
        assert text.startswith("usage: ")
        assert "Trains.\n\n    as written\n" in text

    def test_every_setting_is_there_once(self, text):
        shown = re.findall(r"^  --(\w+)", text, re.MULTILINE)
        expected = [one.name for kind in TYPES for one in fields(kind) if one.init]
        assert sorted(shown) == sorted(expected)

    def test_settings_are_where_they_belong(self, text):
        assert "  --num_generations N" in text.partition("trl.GRPOConfig:")[2]
        assert "  --learning_rate X" in text.partition("trl.GRPOConfig:")[2]  # trl changes it
        assert text.index("--max_grad_norm") > text.index("transformers.TrainingArguments:")
        assert text.index("--num_generations") < text.index("trl.ModelConfig:")

    def test_it_comes_before_the_file_is_read(self, make, capsys):
        with pytest.raises(SystemExit) as ended:
            make().read(["--config", "nope.yaml", "--help"])
        assert ended.value.code == 0
        assert "--shards" in capsys.readouterr().out


class TestNames:
    """A setting has one name and one text from YAML to code."""

    def helps(self, kind: type[Any]) -> dict[str, str]:
        return {f.name: f.metadata["help"] for f in fields(kind) if "help" in f.metadata}

    @pytest.mark.parametrize("kind", [StreamConfig, CacheSettings, RetryRules, ImageLimits])
    def test_what_a_user_sets_is_called_the_same_below(self, kind):
        above, below = self.helps(DataArguments), self.helps(kind)
        assert below
        for name, words in below.items():
            assert above[name].startswith(words)

    def test_evaluation_calls_it_the_same(self):
        names = set(self.helps(DataArguments)) & set(self.helps(EvaluateArguments))
        names -= {"shards", "json", "max_bad_samples"}  # of another kind: one data set, files
        assert len(names) > 8
        for name in names:
            assert self.helps(EvaluateArguments)[name] == self.helps(DataArguments)[name]

    def test_every_setting_of_this_project_is_explained(self):
        for kind in (*OWN, EvaluateArguments):
            assert list(self.helps(kind)) == [one.name for one in fields(kind)]
