import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.boxes import Box, Size
from grpo_stream.grounding.cases import Case
from grpo_stream.grounding.evaluation.region_vote import voted_answer

SIZE = Size(1000, 500)  # a point votes for a square of 30


def vote(*texts):
    cases = [Case(text, Box(0, 0, 9, 9), SIZE, None, "original") for text in texts]
    return voted_answer(cases)


@pytest.mark.parametrize(
    ("texts", "winner"),
    [
        (["(10, 10)"], 0),
        (["(900, 400)", "(100, 100)", "(110, 100)"], 1),
        (["(100, 100)", "(110, 100)", "(120, 100)", "(900, 400)"], 1),
        (["(900, 400)", "(100, 100)", "(129, 100)", "(150, 100)"], 2),
        (["[0, 0, 100, 100]", "[50, 50, 150, 150]", "[60, 60, 140, 140]"], 1),
        (["(900, 400)", "[850, 350, 950, 450]", "(100, 100)"], 0),
        (["(0, 0)", "(900, 400)"], 0),
        (["?", "(900, 400)", ""], 1),
        (["?", ""], 0),
        (["?", "not found"], 1),
        (["(900, 400)", "not found"], 0),
        (["(900, 400)", "not found", "[-1, -1]"], 1),
        (["not found", "(900, 400)", "(901, 400)", "null"], 1),
        (["[9, 9, 1, 1]", "(900, 400)"], 1),
    ],
)
def test_the_densest_place_wins(texts, winner):
    assert vote(*texts) == winner


places = st.tuples(st.integers(0, 999), st.integers(0, 499)).map(str)


@given(st.lists(places, min_size=1, max_size=12), st.randoms())
def test_the_winner_is_as_dense_whatever_the_order(texts, random):
    def votes(winner, given_texts):
        x, y = map(int, given_texts[winner].strip("()").split(","))
        points = [tuple(map(int, text.strip("()").split(","))) for text in given_texts]
        return sum(abs(x - a) < 30 and abs(y - b) < 30 for a, b in points)

    shuffled = texts[:]
    random.shuffle(shuffled)
    for order in (texts, shuffled):
        best = max(votes(number, order) for number in range(len(order)))
        # Neighbours of the winner are all that vote for its region, so no fewer than those.
        assert votes(vote(*order), order) >= (2 if best > 1 else 1)


def test_many_answers_take_no_time_to_speak_of():
    assert vote(*[f"({n * 37 % 1000}, {n * 91 % 500})" for n in range(64)]) < 64
