"""What went wrong with an object store, in one word, and whether waiting may help."""

import re

from grpo_stream.errors import StoreError
from grpo_stream.storage.blobs import first_line

TRANSIENT_CAUSES = frozenset({"unavailable", "timed_out", "broken_off"})
"""Causes of a StoreError that another try may get over.

``unavailable``: the server could not be reached or asked to come again (5xx, 429); ``timed_out``:
no byte came for too long; ``broken_off``: the connection ended inside the answer.
"""

VARIABLES = {
    "s3": (
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary "
        "ones), AWS_REGION, AWS_ENDPOINT_URL; AWS_SKIP_SIGNATURE=true for a public bucket"
    ),
    "gs": (
        "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT; "
        "GOOGLE_SKIP_SIGNATURE=true for a public bucket"
    ),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY or "
        "AZURE_CLIENT_ID with AZURE_CLIENT_SECRET and AZURE_TENANT_ID; "
        "AZURE_SKIP_SIGNATURE=true for a public container"
    ),
}
"""Scheme -> the environment variables that credentials come from."""

_STATUS = re.compile(r"status code: (\d{3})")
# Time-out, too early, too many requests; a server's own faults, all but two, say "later" too.
_COME_AGAIN = {408, 425, 429, *range(500, 600)} - {501, 505}
# S3 answers 400 to a session token that ran out.
_BAD_CREDENTIALS = re.compile(
    r"ExpiredToken|TokenExpired|TokenRefreshRequired|InvalidToken|InvalidAccessKeyId"
    r"|SignatureDoesNotMatch|AuthenticationFailed|RequestExpired"
)
_NO_RANGE = re.compile(r"RangeNotSupported|NotPartial")
_BROKEN = re.compile(r"kind: (?:Interrupted|Decode)|UnexpectedRange|body error|UnexpectedEof")
_UNREACHABLE = re.compile(r"kind: (?:Connect|Request)\b|error sending request")
_CERTIFICATE = "InvalidCertificate("
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|The specified bucket does not exist")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>|expecting '([a-z0-9-]{1,40})'")
_OWN_MACHINE = re.compile(r"169\.254\.169\.254|169\.254\.170\.2|metadata\.google\.internal")


def cause_of(error: Exception, otherwise: str) -> str:
    """The cause of what obstore raised.

    Args:
        error: An exception of obstore's, or an OSError or ValueError that came out of a call.
        otherwise: The cause of what is none of the known faults.
    """
    text = str(error)
    kind = type(error).__name__
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    if isinstance(error, FileNotFoundError):
        return "no_bucket" if _NO_BUCKET.search(text) else "not_found"
    if _CERTIFICATE in text:
        return otherwise  # it will be the same at the next try
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        return "forbidden"
    if 400 <= status < 500 and _BAD_CREDENTIALS.search(text):
        return "forbidden"
    if kind == "AlreadyExistsError":
        return "exists"
    if kind == "PreconditionError":
        return "changed"
    if status == 416:
        return "short_read"
    if _NO_RANGE.search(text):
        return "range_ignored"
    if status in _COME_AGAIN:
        return "unavailable"
    if "kind: Timeout" in text:
        return "timed_out"
    if not status and _UNREACHABLE.search(text):
        return "unavailable"
    if not status and _BROKEN.search(text):
        return "broken_off"
    return otherwise


def asks_to_wait(error: Exception) -> bool:
    """Whether the server refused for now in a way that may name the time to wait."""
    found = _STATUS.search(str(error))
    return found is not None and found[1] in ("429", "503")


def explain(cause: str, url: str, name: str, error: Exception) -> StoreError:
    """The StoreError that tells a user what ``error`` was, and what to do."""
    text = str(error)
    detail = f"{url}: {name}: {first_line(error)}"
    if (region := _REGION.search(text)) is not None:
        detail += f"; the bucket is in another region: set AWS_REGION={region[1] or region[2]}"
        return StoreError(cause, detail)
    if "RequestTimeTooSkewed" in text:
        detail += "; this machine's clock is wrong, set it by NTP"
        return StoreError(cause, detail)
    credentials = VARIABLES.get(_provider(url))
    if cause == "forbidden" and credentials is None:
        detail += "; the web server wants a login, which cannot be given: use a bucket's own URL"
    elif cause == "forbidden":
        detail += f"; see that credentials are set, not expired and may read it: {credentials}"
    elif cause == "no_bucket":
        detail += "; no such bucket: see its name, and that the endpoint is the right one"
    elif cause == "unavailable" and _OWN_MACHINE.search(text):
        detail += f"; no credentials are set, and this machine has none of its own: {credentials}"
    elif cause == "range_ignored":
        detail += (
            "; the server sends whole objects only: give --cache_dir, which reads whole shards, "
            "or use a server that answers ranges"
        )
    elif cause == "changed":
        detail += "; it was replaced while it was read: a data set in use must stay as it is"
    elif cause == "timed_out":
        detail += "; no answer in time"
    return StoreError(cause, detail)


def _provider(url: str) -> str:
    scheme = url.partition(":")[0]
    return {"abfs": "az", "abfss": "az"}.get(scheme, scheme)
