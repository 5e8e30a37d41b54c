import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train import agreement


def ranks(monkeypatch, *others):
    """Makes the gathered list what this rank sends and what ``others`` sent."""
    monkeypatch.setattr(agreement, "gather_object", lambda mine: [*mine, *others])


def test_the_same_everywhere(monkeypatch):
    ranks(monkeypatch, {"digest": "a", "seed": 1}, {"digest": "a", "seed": 1})
    agreement.check_agreement({"digest": "a", "seed": 1})


def test_a_difference_names_setting_and_ranks(monkeypatch):
    ranks(monkeypatch, {"digest": "a", "seed": 1}, {"digest": "b", "seed": 1})
    with pytest.raises(ConfigError, match=r"digest='a'.*\{2: 'b'\}"):
        agreement.check_agreement({"digest": "a", "seed": 1})


def test_one_process_agrees_with_itself():
    agreement.check_agreement({"digest": "a"})
