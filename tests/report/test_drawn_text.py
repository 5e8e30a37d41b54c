import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.report.drawn_text import drawable, font, wrap


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("Click on 'OK' (1/2)", "Click on 'OK' (1/2)"),
        ("na\u00efve \u015feker", "naive seker"),
        ("e\u0301", "e"),
        ("3 \u00d7 4 \u2014 five", "3 x 4 - five"),
        ("\u65e5\u672c\U0001f600", "\u00b7" * 3),
        ("\u00bd", "\u00b7"),
        ("a\tb\nc\x00d\ud800", "a b c\u00b7d\u00b7"),
        ("\u201cq\u201d\u2026", "\u201cq\u201d\u2026"),
    ],
)
def test_what_the_font_lacks_is_replaced(text, drawn):
    assert drawable(text) == drawn


@given(st.text(st.characters(exclude_categories=[])), st.integers(1, 4))
def test_any_text_fits_its_lines(text, max_lines):
    lines = wrap(text, 14, 90, max_lines)
    assert 1 <= len(lines) <= max_lines
    assert all(font(14).getlength(line) <= 90 for line in lines)


def test_lines_break_between_words_and_end_in_an_ellipsis_when_cut():
    assert wrap("one two", 14, 1000, 2) == ["one two"]
    assert wrap("one two three", 14, font(14).getlength("one two"), 2) == ["one two", "three"]
    cut = wrap("one two three four", 14, font(14).getlength("one two"), 2)
    assert cut[0] == "one two"
    assert cut[1].endswith("\u2026")
    assert "".join(wrap("x" * 60, 14, 90, 9)) == "x" * 60
