import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.policy import policy_config
from grpo_stream.train.models.processor import load_processor


@pytest.mark.parametrize("load", [policy_config, load_processor])
@pytest.mark.parametrize(
    ("model_id", "words"),
    [
        ("/no/such/folder", "'/no/such/folder': does not exist; give a folder or a hub id"),
        ("runs/of/yesterday", "'runs/of/yesterday': does not exist; give"),
        ("./tiny", "'./tiny': does not exist; give"),
        ("yesterday/tiny", "'yesterday/tiny': does not exist here, and on the hub it "),
        ("./pyproject.toml", "'./pyproject.toml': is no folder; give"),
        ("tests", r"'tests': (cannot be loaded|holds no processor) \("),
    ],
)
def test_what_is_not_there_is_called_that(load, model_id, words):
    with pytest.raises(ConfigError, match=f"model_name_or_path={words}.*Qwen/Qwen2.5-VL") as caught:
        load(model_id)
    assert "Repo id" not in str(caught.value)
