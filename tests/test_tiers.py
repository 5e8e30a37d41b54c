"""What ``make test`` leaves out to ``make test-slow`` says why."""

import pytest

from tests.conftest import pytest_collection_modifyitems


class Item:
    nodeid = "tests/test_some.py::test_some"

    def __init__(self, marker):
        self.marker = marker

    def iter_markers(self, name):
        return [self.marker.mark] if self.marker.name == name else []


@pytest.mark.parametrize("marker", [pytest.mark.slow(reason="trains twice"), pytest.mark.cluster])
def test_a_reason_is_given(marker):
    pytest_collection_modifyitems([Item(marker)])


@pytest.mark.parametrize(
    "marker", [pytest.mark.slow, pytest.mark.slow(reason=""), pytest.mark.slow("trains twice")]
)
def test_a_slow_test_without_a_reason_is_refused(marker):
    with pytest.raises(pytest.UsageError, match=r"test_some: write pytest\.mark\.slow\(reason="):
        pytest_collection_modifyitems([Item(marker)])
