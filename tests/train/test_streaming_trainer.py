import pytest
from transformers import Trainer
from trl import GRPOTrainer, SFTTrainer

from grpo_stream.train.sft_trainer import StreamingSFTTrainer
from grpo_stream.train.streaming_trainer import StreamingTrainer
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.overrides import check_provenance, overrides_in

OVERRIDES = overrides_in(StreamingTrainer, Trainer)


@pytest.mark.parametrize("method", OVERRIDES, ids=lambda method: method.__name__)
def test_an_override_names_what_it_overrides(method):
    is_of_trl = any(method.__name__ in vars(cls) for cls in (GRPOTrainer, SFTTrainer))
    assert check_provenance(method, Trainer) == is_of_trl


def test_comes_right_before_trl():
    assert PersonalizedGRPOTrainer.__bases__ == (StreamingTrainer, GRPOTrainer)
    assert StreamingSFTTrainer.__bases__ == (StreamingTrainer, SFTTrainer)
    assert StreamingTrainer.__bases__ == (Trainer,)
    assert len(OVERRIDES) > 15


@pytest.mark.parametrize("theirs", [GRPOTrainer, SFTTrainer])
def test_its_other_names_are_not_trls(theirs):
    own = {name for name in vars(StreamingTrainer) if not name.startswith("__")}
    others = own - {method.__name__ for method in OVERRIDES}
    assert {name for name in others if hasattr(theirs, name)} == set()
