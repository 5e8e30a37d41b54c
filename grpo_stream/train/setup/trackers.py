"""The experiment trackers that ``report_to`` names."""

from collections.abc import Sequence

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from grpo_stream.errors import ConfigError

_PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""Tracker -> its package, where they are called differently."""


def check_trackers(report_to: Sequence[str]) -> None:
    """Checks that every tracker is there; transformers (5.23) fails when the model is loaded.

    Raises:
        ConfigError: one is unknown, or its package is not installed.
    """
    installed = get_available_reporting_integrations()
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ConfigError("report_to", name, f"is no tracker; use none or some of {known}")
        if name not in installed:
            package = _PACKAGES.get(name, name)
            others = ", ".join(one for one in installed if one != name) or "none"
            expected = f"is not installed: pip install {package}; or use {others}"
            raise ConfigError("report_to", name, expected)
