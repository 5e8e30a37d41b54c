import pytest

from grpo_stream.errors import CheckpointError
from grpo_stream.train.checkpoints.universal import universal_in


def test_a_checkpoint_without_one(tmp_path):
    assert universal_in(tmp_path) is None


@pytest.mark.parametrize("name", ["../other", "/etc", "..", "", "a/b", "\0"])
def test_pickles_of_elsewhere_are_not_loaded(tmp_path, name):
    (tmp_path / "latest_universal").write_text("global_step2_universal\n")
    assert universal_in(tmp_path) == tmp_path / "global_step2_universal"
    (tmp_path / "latest_universal").write_text(name)
    with pytest.raises(CheckpointError, match="is no folder of the checkpoint"):
        universal_in(tmp_path)
