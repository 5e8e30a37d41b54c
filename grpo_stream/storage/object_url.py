"""From a store's URL and environment variables to the settings of an obstore client."""

import os
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from grpo_stream.storage.retry_policy import RetryRules

_ENDPOINT_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "AZURITE_BLOB_STORAGE_URL"),
}


def client_options(url: str, rules: RetryRules | None) -> dict[str, Any]:
    """Keyword arguments of obstore's ``from_url``.

    Args:
        url: Of the store.
        rules: For time-outs; the client repeats nothing then. None: as obstore has them.
    """
    scheme = _scheme(url)
    client: dict[str, Any] = {}
    options: dict[str, Any] = {"client_options": client}
    endpoints = [os.environ.get(name, "") for name in _ENDPOINT_VARIABLES.get(scheme, ())]
    # obstore refuses http:// unless told that no TLS is meant.
    if any(place.startswith("http://") for place in (url, *endpoints)):
        client["allow_http"] = True
    elif scheme == "s3" and "AWS_UNSIGNED_PAYLOAD" not in os.environ:
        # TLS guards what is sent already; to hash it too takes 0.9 s of CPU a GB. boto3 does so.
        options["config"] = {"unsigned_payload": "true"}
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if scheme == "gs" and emulator and "GOOGLE_BASE_URL" not in os.environ:
        # Google's own clients read it; obstore does not.
        place = emulator if "://" in emulator else f"http://{emulator}"
        options["config"] = {"base_url": place, "bearer_token": "emulator"}
        client["allow_http"] = True
    if rules is not None:
        client["connect_timeout"] = timedelta(seconds=rules.connect_timeout_seconds)
        client["read_timeout"] = timedelta(seconds=rules.stall_timeout_seconds)
        client["timeout"] = timedelta(seconds=rules.request_timeout_seconds)
        # Of obstore's own tries none is left: they would hide faults and outlast the deadline.
        deadline = timedelta(seconds=rules.retry_deadline_seconds)
        options["retry_config"] = {"max_retries": 0, "retry_timeout": deadline}
    return options


def literal_url(url: str) -> str:
    """The URL for obstore, which would decode ``%20`` in a bucket's folder but not in a name.

    In a bucket a name is what it is, in every part; a web server's URL is quoted as all URLs are.
    """
    if url.startswith(("http://", "https://")):
        return url
    scheme, _, rest = url.partition("://")
    bucket, slash, folder = rest.partition("/")
    return f"{scheme}://{bucket}{slash}{quote(folder)}"


def sends_secrets(url: str, client: Any) -> bool:
    """Whether requests carry what must not reach another host than the one they are for."""
    if url.startswith(("http://", "https://")):
        return "?" in url
    if type(client).__name__ != "S3Store" or os.environ.get("AWS_SKIP_SIGNATURE") == "true":
        return False
    # Keys alone sign a request for one host; a temporary key, or a role's, has a token beside it.
    return "AWS_SESSION_TOKEN" in os.environ or "AWS_ACCESS_KEY_ID" not in os.environ


def url_hint(url: str) -> str:
    """What a URL that is refused should look like."""
    if url.startswith(("az", "abfs")):
        return "write az://container/folder and set AZURE_STORAGE_ACCOUNT_NAME"
    return "write s3://bucket/folder"


def _scheme(url: str) -> str:
    scheme = urlsplit(url).scheme
    return {"abfs": "az", "abfss": "az"}.get(scheme, scheme)
