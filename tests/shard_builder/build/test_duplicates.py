from hypothesis import given
from hypothesis import strategies as st

from shard_builder.build import spill_buckets
from shard_builder.build.chunk_result import ChunkResult, Notes
from shard_builder.build.duplicates import find_repeats

ASKED = st.lists(
    st.lists(st.tuples(st.integers(0, 9).map(lambda n: n * (2**60 + 7)), st.integers(0, 2))),
    max_size=6,
)


def results_of(asked):
    results, position = [], 100
    for number, pairs in enumerate(asked):
        notes = Notes()
        for question, answer in pairs:
            notes.positions.append(position)
            notes.questions.append(question)
            notes.answers.append(answer)
            position += 3
        results.append(ChunkResult("", number, notes=notes))
    return results


def expected(results):
    first: dict[int, tuple[int, int]] = {}
    for result in results:
        notes = result.notes
        found = {}
        rows = zip(notes.positions, notes.questions, notes.answers, strict=True)
        for number, (position, question, answer) in enumerate(rows):
            earlier, before = first.setdefault(question, (position, answer))
            if earlier != position:
                found[number] = ("duplicate" if before == answer else "conflict", earlier)
        yield found


@given(ASKED, st.sampled_from([1, 300, 2**26]))
def test_as_a_dictionary_of_all_would_find_them(tmp_path_factory, asked, max_bytes):
    folder = tmp_path_factory.mktemp("repeats")
    results = results_of(asked)
    before = spill_buckets._MAX_BYTES
    spill_buckets._MAX_BYTES = max_bytes  # few: everything goes through files
    try:
        found = list(find_repeats(lambda: iter(results), folder))
    finally:
        spill_buckets._MAX_BYTES = before
    wanted = list(expected(results))
    assert [{n: cause for n, (cause, _) in one.items()} for one in found] == [
        {n: cause for n, (cause, _) in one.items()} for one in wanted
    ]
    for one, other in zip(found, wanted, strict=True):
        assert all(f"record {other[n][1]}" in one[n][1] for n in one)
