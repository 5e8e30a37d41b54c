from dataclasses import dataclass, field, fields

import pytest

from grpo_stream.flags import help_of, same_setting, setting, with_dashes


@dataclass
class Original:
    size: int = setting(3, "How large it is.")
    place: str = field(default="", metadata={"help": "Where it is."})


@dataclass
class Copy:
    size: int = same_setting(Original, "size")
    place: str | None = same_setting(Original, "place", default=None)


def test_a_setting_is_written_once():
    assert Copy() == Copy(3, None)
    assert [one.metadata["help"] for one in fields(Copy)] == ["How large it is.", "Where it is."]
    assert help_of(Copy, "size") == "How large it is."


def test_an_unknown_setting():
    with pytest.raises(ValueError, match="not enough values"):
        help_of(Original, "colour")


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("--max_pixels", "--max-pixels"),
        ("--max-pixels=a_b", "--max-pixels=a_b"),
        ("--to_be=--or_not", "--to-be=--or_not"),
        ("a_b", "a_b"),
        ("-a_b", "-a_b"),
    ],
)
def test_with_dashes(word, same):
    assert with_dashes([word, "x_y"]) == [same, "x_y"]
