"""Samples that are read well and that a batch cannot be made of."""

import pytest

from grpo_stream.errors import BadSamplesError, ConfigError, RecordError
from grpo_stream.stream.loader import PromptLoader
from tests.stream.support import epoch_keys, keys_of, make_stream, write_numbered_set


@pytest.fixture
def folder(tmp_path):
    return write_numbered_set(tmp_path / "set")


def throwing_at(keys, error):
    def collate(samples):
        for sample in samples:
            if sample.key in keys:
                raise error
        return keys_of(samples)

    return collate


@pytest.mark.parametrize("num_reader_threads", [0, 2])
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RecordError("prompt_too_long", "9 tokens"), "prompt_too_long"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), "not_collated"),
        (OverflowError("int too large"), "not_collated"),
    ],
)
def test_what_the_collator_throws_is_a_bad_sample(folder, num_reader_threads, error, cause):
    stream = make_stream(folder, num_reader_threads=num_reader_threads)
    whole = epoch_keys(folder)
    with PromptLoader(stream, throwing_at({whole[1][2], whole[3][0]}, error)) as loader:
        read = list(loader)
    differing = [
        (b, s) for b, batch in enumerate(whole) for s in range(4) if read[b][s] != batch[s]
    ]
    assert differing == [(1, 2), (3, 0)]
    assert stream.counters.num_bad_by_cause == {cause: 2}
    assert stream.counters.num_samples == sum(map(len, whole))


def test_a_stand_in_may_fail_too_and_the_key_is_named(folder):
    whole = epoch_keys(folder)
    stream = make_stream(folder, max_bad_samples=2)
    wrong = {f"{n:06d}" for n in range(23)} - set(whole[0][1:])
    with (
        PromptLoader(stream, throwing_at(wrong, ValueError("no"))) as loader,
        pytest.raises(BadSamplesError, match=r"not_collated: key='\d{6}': ValueError: no"),
    ):
        next(iter(loader))


@pytest.mark.parametrize("error", [ConfigError("x", 1, "must be 2"), MemoryError()])
def test_what_is_no_sample_s_fault_is_raised(folder, error):
    stream = make_stream(folder)
    first = epoch_keys(folder)[0][0]
    with (
        PromptLoader(stream, throwing_at({first}, error)) as loader,
        pytest.raises(type(error)),
    ):
        next(iter(loader))
    assert not stream.counters.quarantine


def test_a_collator_that_fails_for_the_batch_alone_raises(folder):
    def collate(samples):
        if len(samples) > 1:
            raise ValueError("several")

    with (
        PromptLoader(make_stream(folder), collate) as loader,
        pytest.raises(ValueError, match="sev"),
    ):
        next(iter(loader))
