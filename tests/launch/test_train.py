import pytest

from grpo_stream.errors import ConfigError
from tests.launch.support import load_script

train = load_script("train")


def test_resume_true_takes_the_newest_checkpoint_or_begins(tmp_path):
    assert train.resume_from("true", str(tmp_path / "not_made_yet")) is None
    assert train.resume_from("true", str(tmp_path)) is None
    for step in (5, 50, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert train.resume_from("True", str(tmp_path)) == str(tmp_path / "checkpoint-50")


def test_resume_from_a_named_checkpoint(tmp_path):
    assert train.resume_from(str(tmp_path), "out") == str(tmp_path)
    with pytest.raises(ConfigError, match="resume_from_checkpoint='nowhere'"):
        train.resume_from("nowhere", "out")


@pytest.mark.parametrize("value", [None, "false"])
def test_without_it_a_run_begins(value, tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    assert train.resume_from(value, str(tmp_path)) is None
