"""The locked versions are ones that pyproject.toml allows, and name no place to get them from."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-torch.lock", "tests/ray/requirements.lock")


def locked():
    # What two of them have is taken from the first.
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in reversed(LOCKS))
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", text, re.MULTILINE))
    return {canonicalize_name(name): version for name, version in pins.items()}


def wanted():
    """What [project] asks for, all extras included."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = text[text.index("[project]") : text.index("[project.scripts]")]
    lists = re.findall(r"^[a-z]+ = (\[.*?\])$", project, re.MULTILINE | re.DOTALL)
    found = [item for part in lists for item in re.findall(r'"([^"]+)"', part)]
    return [item for item in found if item != "LICENSE"]


def test_pyproject_is_read():
    assert any(item.startswith("numpy") for item in wanted())
    assert any(item.startswith("trl") for item in wanted())
    assert any(item.startswith("pytest==") for item in wanted())


@pytest.mark.parametrize("item", wanted())
def test_the_lock_has_what_pyproject_asks_for(item):
    requirement = Requirement(item)
    version = locked().get(canonicalize_name(requirement.name))
    assert version is not None, "not locked"
    assert requirement.specifier.contains(version)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_exact_versions_alone(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins == sorted(pins, key=lambda pin: canonicalize_name(pin.partition("==")[0]))
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
