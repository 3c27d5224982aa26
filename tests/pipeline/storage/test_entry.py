"""Failures of real clients, as error codes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from obstore.exceptions import GenericError, PermissionDeniedError

from pipeline.schema import ERROR_CODES
from pipeline.storage.entry import as_user_error, bare_etag, classify, store_failure
from pipeline.storage.storage import Storage
from tests.servers import S3Server

DOWN, REFUSED = ("unavailable", 75), ("forbidden", 2)
S3 = "Error performing GET http://host/b/k in 1ms - Server returned non-2xx status code: {}"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError("x"), "not_found"),
        (PermissionError("x"), "forbidden"),
        (PermissionDeniedError("x"), "forbidden"),
        (TimeoutError(), "timeout"),
        (GenericError("operation timed out"), "timeout"),
        (GenericError(S3.format("503 Slow Down")), "unavailable"),
        (GenericError(S3.format("403 Forbidden: <Code>InvalidObjectState</Code>")), "archived"),
        (ConnectionResetError("reset"), "unavailable"),
    ],
)
def test_a_failure_has_a_code_of_the_schema(error: Exception, code: str) -> None:
    assert classify(error)[0] == code
    assert code in ERROR_CODES


def of_package(module: str, name: str, **attributes: object) -> Exception:
    """An exception as a package raises it that the tests don't install."""
    kind = type(name, (Exception,), {"__module__": module, **attributes})
    return kind("no")


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (of_package("azure.core.exceptions", "ServiceRequestError"), *DOWN),
        (of_package("azure.core.exceptions", "HttpResponseError", status_code=503), *DOWN),
        (of_package("azure.core.exceptions", "HttpResponseError", status_code=403), *REFUSED),
        (of_package("azure.core.exceptions", "ClientAuthenticationError"), *REFUSED),
        (of_package("gcsfs.retry", "HttpError", code=503), *DOWN),
        (of_package("gcsfs.retry", "HttpError", code=401), *REFUSED),
        (of_package("gcsfs.retry", "HttpError", code=400), "unavailable", 2),
        (of_package("google.auth.exceptions", "TransportError"), *DOWN),
        (of_package("google.auth.exceptions", "RefreshError"), *REFUSED),
    ],
)
def test_failures_of_other_stores(error: Exception, code: str, exit_code: int) -> None:
    failure = as_user_error(error, "can't list gs://b")
    assert (failure.code, failure.exit_code) == (code, exit_code)
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = error
    assert store_failure(wrapped) is not None


def test_the_message_is_one_line_without_a_query_string() -> None:
    _, message = classify(
        GenericError("GET http://h/k?X-Amz-Signature=abc failed\n\nDebug source: y")
    )
    assert message == "GET http://h/k failed"


def test_a_store_s_xml_is_said_by_its_message_alone() -> None:
    body = '<?xml version="1.0"?><Error><Code>X</Code><Message>Not today</Message></Error>'
    _, message = classify(GenericError(S3.format(f"400 Bad Request: {body}")))
    assert message.endswith("400 Bad Request: Not today (X)")
    assert "<" not in message


def test_a_bucket_that_is_not_there_is_named(moto: S3Server) -> None:
    with pytest.raises(ClientError) as caught:
        list(Storage("s3://nope/photos").list())
    said = str(as_user_error(caught.value, "can't list s3://nope/photos"))
    assert said == (
        "can't list s3://nope/photos: there is no bucket 'nope' (not_found: check its name and the "
        "endpoint)"
    )


def test_a_path_of_this_machine_has_a_hint_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none").read_bytes()
    said = str(as_user_error(caught.value, "can't read it"))
    assert said.endswith("(not_found: check the path)")


def test_a_user_error_says_what_to_check() -> None:
    assert "check the credentials" in str(as_user_error(PermissionError("no"), "can't list x"))


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (GenericError(S3.format("503 Slow Down")), 75),
        (GenericError(S3.format("429 Too Many Requests")), 75),
        (GenericError("error decoding response body"), 75),
        (GenericError(S3.format("400 Bad Request")), 2),
        (GenericError("HttpError { kind: Connect, source: dns error }"), 2),
        (PermissionDeniedError("x"), 2),
        (NotADirectoryError("x"), 2),
    ],
)
def test_a_store_that_fails_is_worth_another_call_and_a_mistake_is_not(
    error: Exception, exit_code: int
) -> None:
    failure = as_user_error(error, "can't list x")
    assert failure.exit_code == exit_code
    assert pickle.loads(pickle.dumps(failure)).exit_code == exit_code  # it comes from workers, too


def test_an_etag_is_compared_without_its_quotes() -> None:
    assert bare_etag('"abc"') == bare_etag('W/"abc"') == bare_etag("abc") == "abc"
    assert bare_etag(None) is None
