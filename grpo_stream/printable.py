"""Text as it may be shown and kept: no secret of a URL, no control character.

The one place for both: every error message, a store's ``url`` and the lines of a run's plan go
through here, and so do logs, quarantine and lists, which are made of these.
"""

import re

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`|]+")
_USER = re.compile(r"(?<=://)[^/?#]*@")
_QUERY_VALUE = re.compile(r"(?<=[?&])([^=&#]*)=[^&#]*")
# C0 and C1 without tab and newline, marks that turn the direction of text, half surrogate pairs.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def mask_secrets(text: str) -> str:
    """``text`` with ``***`` in its URLs for user and password and for each value of a query.

    A signed URL (``?sig=...``, ``?X-Amz-Signature=...``) is a key to what it names, for whoever
    reads the log.
    """
    return _URL.sub(_masked, text) if "://" in text else text


def printable(text: str) -> str:
    """``text`` without secrets, its control characters as Python would write them in a literal."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], mask_secrets(text))


def has_user(url: str) -> bool:
    """Whether a URL holds a user or password (``https://user:password@host/``)."""
    return bool(_USER.search(url))


def _masked(found: re.Match[str]) -> str:
    return _QUERY_VALUE.sub(r"\1=***", _USER.sub("***@", found[0]))
