"""What storage says of an object: a listed entry, a fetched body, and the code of a failure."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from typing import NamedTuple

from pipeline.errors import TryAgainError, UserError


class Entry(NamedTuple):
    """A listed object: key relative to what was listed, bytes, and the store's own marks."""

    path: str
    size: int
    etag: str | None
    last_modified: datetime | None


class Fetched(NamedTuple):
    """One GET's body and the ETag that came with it."""

    data: bytes
    etag: str | None


def bare_etag(etag: str | None) -> str | None:
    """An ETag without its quotes, which some servers send in a GET and not in a listing."""
    return etag.removeprefix("W/").strip('"') if etag else None


_STATUS = re.compile(r"status code: (\d{3})|status=(\d{3})|\b(4\d\d|5\d\d), message=")
# What obstore's own first line leaves out.
_HINTS = {
    "IncompleteMessage": "the connection broke before an answer",
    "IncompleteBody": "the connection broke in the body",
    "TimedOut": "nothing came any more",
    "ConnectionRefused": "nobody listens there",
}
_S3_CODE = re.compile(r"<Code>(\w+)</Code>")


def classify(error: BaseException) -> tuple[str, str]:
    """The error code of `schema.ERROR_CODES` and one line for a failed GET, PUT or listing.

    The message is the client's first line without any query string, since that is where a
    presigned URL carries its signature.
    """
    text = str(error)
    line = re.sub(r"\?\S+", "", text.split("\n", 1)[0]).strip() or type(error).__name__
    s3_code = _S3_CODE.search(text)
    if s3_code and s3_code[1] not in line:
        line = f"{line} ({s3_code[1]})"
    status = next(
        (group for match in _STATUS.finditer(text) for group in match.groups() if group), ""
    )
    hint = next((words for mark, words in _HINTS.items() if mark in text), None)
    line = line[:500] + (f" ({hint})" if hint else "")
    if "InvalidObjectState" in text:
        return "archived", line
    if isinstance(error, FileNotFoundError) or status in ("404", "410"):
        return "not_found", line
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or (
        isinstance(error, PermissionError) or status in ("401", "403")
    ):
        return "forbidden", line
    if (
        isinstance(error, (TimeoutError, asyncio.TimeoutError))
        or "timed out" in text.lower()
        or ("TimedOut" in text)
    ):
        return "timeout", line
    return "unavailable", line


class StorageError(UserError):
    """A storage failure that stops a job; `code` as `classify` gives it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def may_pass(self) -> bool:
        """True if the same command may work later: the store or the way to it is down."""
        return self.code in ("timeout", "unavailable")


def of_storage(error: BaseException) -> bool:
    """True if a storage client raised this."""
    root = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or root in ("obstore", "botocore", "aiohttp")


def as_lost(error: BaseException, what: str) -> UserError:
    """The same in the middle of a job: what another call may mend asks for one."""
    code, _ = classify(error)
    sentence = as_user_error(error, what)
    if code in ("timeout", "unavailable"):
        return TryAgainError(f"{sentence}; shards already written stay: run the same command again")
    return sentence


def as_user_error(error: BaseException, what: str) -> StorageError:
    """The sentence for a storage failure outside the image stream, where it must stop the job."""
    code, line = classify(error)
    mend = {
        "not_found": "check the path and the bucket's name",
        "forbidden": "check the credentials and the bucket's policy",
        "timeout": "check the network and the endpoint",
        "archived": "restore it from the archive tier first",
        "unavailable": "check the endpoint and the network",
    }[code]
    return StorageError(f"{what}: {line} ({code}: {mend})", code)
