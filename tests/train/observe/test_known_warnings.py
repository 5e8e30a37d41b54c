import warnings

import pytest

from grpo_stream.train.observe.known_warnings import KNOWN, ignore_known_warnings


@pytest.fixture
def shown():
    """Warnings that would be in the log of a run."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        ignore_known_warnings()
        yield shown


def test_known_ones_are_left_out(shown):
    for text in KNOWN:
        warnings.warn(text, FutureWarning, stacklevel=1)
    assert shown == []


@pytest.mark.parametrize(
    ("text", "category"),
    [
        (
            "`use_cache` is deprecated and will be removed in v6. Use `cache` instead.",
            FutureWarning,
        ),
        (f"{KNOWN[0]} And the seed of samples changes.", FutureWarning),
        (f"Your model: {KNOWN[0]}", FutureWarning),
        (KNOWN[0], UserWarning),
    ],
)
def test_any_other_is_shown(shown, text, category):
    warnings.warn(text, category, stacklevel=1)
    assert len(shown) == 1
