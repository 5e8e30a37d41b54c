"""What obstore does not tell of a server: where it sends readers on to, and how long to wait.

Each is asked by one HEAD request of our own that follows no redirect, with the address that obstore
would use, so it gives nothing away that the server was not given before.
"""

import contextlib
import math
import time
import urllib.error
import urllib.request
from datetime import timedelta
from email.message import Message
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import IO, Any
from urllib.parse import quote, urlsplit

_TIMEOUT_SECONDS = 5.0
_SIGNED_FOR = timedelta(seconds=60)
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> None:
        del req, fp, code, msg, headers, newurl


_opener = urllib.request.build_opener(_NoRedirect)


def address_of(url: str, client: Any, name: str) -> str | None:
    """The address of an object for one request, with whatever signature it takes.

    Args:
        url: The store's, with its query.
        client: obstore's store.
        name: Of the object.

    Returns:
        None where it cannot be had: no credentials, or a store that signs nothing.
    """
    if url.startswith(("http://", "https://")):
        parts = urlsplit(url)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl()
    import obstore  # noqa: PLC0415 - an extra

    with contextlib.suppress(obstore.exceptions.BaseError, OSError, ValueError, TypeError):
        return str(obstore.sign(client, "HEAD", name, expires_in=_SIGNED_FOR))
    return None


def other_host(address: str) -> str | None:
    """The host that a server sends readers of ``address`` on to, where it is not itself."""
    answer = _head(address)
    if answer is None or answer[0] not in _REDIRECTS:
        return None
    host = urlsplit(answer[1].get("Location", "")).netloc.rpartition("@")[2]
    return host if host and host != urlsplit(address).netloc else None


def retry_after_seconds(address: str) -> float:
    """How long a server that refuses ``address`` for now asks to wait; 0 where it does not say."""
    answer = _head(address)
    if answer is None or answer[0] not in _BUSY:
        return 0.0
    text = (answer[1].get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
        return max(0.0, seconds) if math.isfinite(seconds) else 0.0
    return 0.0


def _head(address: str) -> tuple[int, Message] | None:
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - http or https
    try:
        with _opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, error.headers
    except (OSError, ValueError):  # obstore meets it too, and tells
        return None
