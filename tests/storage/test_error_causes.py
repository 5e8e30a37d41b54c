import pytest

from grpo_stream.storage.error_causes import TRANSIENT_CAUSES, cause_of, explain


def said(status="", store="S3", body="", debug=""):
    """What obstore 0.12 says."""
    text = f"Generic {store} error: Error performing GET http://h/b/x in 1.5ms"
    if status:
        text += f" - Server returned non-2xx status code: {status}: {body}"
    return OSError(f"{text}\n\nDebug source:\n{debug}")


TIMED_OUT = "HttpError {\n kind: Timeout,\n source: reqwest::Error {\n kind: Body"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        *((said(f"{status} x"), "unavailable") for status in (408, 425, 429, 500, 502, 503, 504)),
        *((said(f"{status} x"), "unreadable") for status in (400, 405, 501, 505)),
        *((said(f"{status} x"), "forbidden") for status in (401, 403)),
        (said("416 Range Not Satisfiable"), "short_read"),
        (said("400 Bad Request", body="<Error><Code>ExpiredToken</Code>"), "forbidden"),
        (said("400 Bad Request", body="<Error><Code>InvalidArgument</Code>"), "unreadable"),
        # A body that speaks of tokens is no reason to take a server's fault for the user's.
        (said("503 Service Unavailable", body="InvalidToken"), "unavailable"),
        (FileNotFoundError("Object at location x not found"), "not_found"),
        (said(debug=TIMED_OUT), "timed_out"),
        (said(debug="HttpError {\n kind: Connect,\n source: ..."), "unavailable"),
        (said(debug="HttpError {\n kind: Interrupted,\n kind: ConnectionReset"), "broken_off"),
        (said(debug="UnexpectedRange {"), "broken_off"),
        (said(debug="source: NotPartial,"), "range_ignored"),
        (ValueError("what nobody has seen"), "unreadable"),
    ],
)
def test_what_obstore_says(error, cause):
    assert cause_of(error, "unreadable") == cause


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://b/set", "AWS_SESSION_TOKEN"),
        ("gs://b/set", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://b/set", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("abfss://b/set", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("https://host/set", "wants a login"),
    ],
)
def test_whoever_is_refused_learns_what_to_set(url, words):
    error = explain("forbidden", url, "x.tar", said("403 Forbidden"))
    assert error.cause == "forbidden"
    assert error.detail.startswith(f"{url}: x.tar: ")
    assert words in error.detail


def test_a_machine_without_credentials():
    asked = OSError("Error performing PUT http://169.254.169.254/latest/api/token in 1.5s - HTTP")
    assert "no credentials are set" in explain("unavailable", "s3://b", "x", asked).detail
    other = OSError("Error performing GET http://h/b/x in 1.5s - HTTP")
    assert "credentials" not in explain("unavailable", "s3://b", "x", other).detail


def test_only_what_passes_is_tried_again():
    assert {"unavailable", "timed_out", "broken_off"} == TRANSIENT_CAUSES
