import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup import trackers
from grpo_stream.train.setup.settings_checks import check_supported
from grpo_stream.train.setup.trackers import check_trackers


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["tensorboard"])


def test_what_is_installed_may_be_used():
    check_trackers([])
    check_trackers(["tensorboard"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandb", "report_to='wandb': is not installed: pip install wandb; or use tensorboard"),
        ("comet_ml", "pip install comet-ml"),
        ("wandbb", "report_to='wandbb': is no tracker; use none or some of .*tensorboard.*wandb"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(name, message, make_args):
    with pytest.raises(ConfigError, match=message):
        check_supported(make_args(report_to=["tensorboard", name]))
