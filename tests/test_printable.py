import copy

import pytest

from grpo_stream.errors import ConfigError, ImageError, StoreError
from grpo_stream.printable import has_user, mask_secrets, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/train", "s3://bucket/train"),
        ("https://u:p@host/a/b", "https://***@host/a/b"),
        ("https://u:p@ss@host:80/a", "https://***@host:80/a"),
        ("https://token@host", "https://***@host"),
        ("https://host/a?sig=abc%3D&se=1#x", "https://host/a?sig=***&se=***#x"),
        (
            "GET https://h/a?X-Amz-Signature=f00 in 3ms; see az://c/d?sig=x, 'gs://b/c?k=v'",
            "GET https://h/a?X-Amz-Signature=*** in 3ms; see az://c/d?sig=*** 'gs://b/c?k=***'",
        ),
        ("https://host/mail@place", "https://host/mail@place"),
        ("what? a=b and c@d", "what? a=b and c@d"),
        ("http://user:pw@h/x?sig=1 https://user2:pw@h2/", "http://***@h/x?sig=*** https://***@h2/"),
    ],
)
def test_secrets_are_masked(text, shown):
    assert mask_secrets(text) == shown
    assert mask_secrets(shown) == shown


def test_control_characters_are_written_out():
    text = "a\x1b[31mred\x07 \u202eab\x9b \ud800\tb\nc é 中"
    assert printable(text) == "a\\x1b[31mred\\x07 \\u202eab\\x9b \\ud800\tb\nc é 中"


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("url", "https://u:secret@h/?sig=secret", "see https://h/?sig=secret \x1b[2J"),
        StoreError("unavailable", "https://u:secret@h/x?sig=secret: \x1b[2J"),
        ImageError("image_unreadable", "https://u:secret@h/x?sig=secret \x1b[2J"),
    ],
)
def test_errors_show_neither(error):
    for one in (error, copy.copy(error)):
        text = f"{one} {one.args} {getattr(one, 'detail', '')} {getattr(one, 'expected', '')}"
        assert "secret" not in text
        assert "\x1b" not in text


def test_users_are_found():
    assert has_user("https://u@h/x")
    assert not has_user("https://h/x@y")
    assert not has_user("s3://bucket/a@b")
