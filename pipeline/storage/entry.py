"""What storage says of an object: a listed entry, a fetched body, and the code of a failure."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from datetime import datetime
from typing import Final, NamedTuple

from pipeline.errors import EXIT_TRY_AGAIN, EXIT_USAGE, TryAgainError, UserError, causes

CLIENTS: Final = ("obstore", "botocore", "aiohttp")


class Entry(NamedTuple):
    """A listed object: key relative to what was listed, bytes, and its object info."""

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
# What a disk says of a name that leads to no file, or that no file can have.
_NO_FILE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What a client raises for a key that it can't ask for, before it asks.
_INEXPRESSIBLE: Final = ("InvalidPathError", "ParamValidationError", "InvalidURL")
_S3_CODE = re.compile(r"<Code>(\w+)</Code>")
# A store's own answer in a client's text, and what in it is for people.
_XML = re.compile(r"<\?xml|<Error>")
_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")
_BUCKET = re.compile(r"<BucketName>([^<]+)</BucketName>")
_NO_BUCKET: Final = "there is no bucket"
# At the first request these may be a mistyped endpoint or region as well as a store that is down.
_NEVER_REACHED = ("kind: Connect", "Could not connect to the endpoint", "redirect without LOCATION")


def classify(error: BaseException) -> tuple[str, str]:
    """The error code of `schema.ERROR_CODES` and one line for a failed GET, PUT or listing.

    The message is the client's first line without any query string, since that is where a
    presigned URL carries its signature, and without a store's XML.
    """
    text = str(error)
    if "NoSuchBucket" in text:
        return "not_found", _no_bucket(error, text)
    line = _without_xml(text.split("\n", 1)[0])
    line = re.sub(r"\?\S+", "", line).strip() or type(error).__name__
    s3_code = _S3_CODE.search(text)
    if s3_code and s3_code[1] not in line:
        line = f"{line} ({s3_code[1]})"
    status = _status(error)
    hint = next((words for mark, words in _HINTS.items() if mark in text), None)
    line = line[:500] + (f" ({hint})" if hint else "")
    if "InvalidObjectState" in text:
        return "archived", line
    if isinstance(error, FileNotFoundError) or status in ("404", "410"):
        return "not_found", line
    if is_of_disk(error) and error.errno in _NO_FILE:  # type: ignore[attr-defined]
        return "not_found", line
    if isinstance(error, ValueError) or type(error).__name__ in _INEXPRESSIBLE:
        return "not_found", f"the store's client can't ask for this name: {line}"
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


def _without_xml(line: str) -> str:
    """The client's words, and of the store's answer its message alone."""
    answer = _XML.search(line)
    if answer is None:
        return line
    said = _MESSAGE.search(line, answer.start())
    return line[: answer.start()].rstrip(" :") + (f": {said[1]}" if said else "")


def _no_bucket(error: BaseException, text: str) -> str:
    said = _BUCKET.search(text)
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    name = said[1] if said else None
    if name is None and isinstance(answer, dict):
        name = answer.get("Error", {}).get("BucketName")
    return f"{_NO_BUCKET} {name!r}" if name else f"{_NO_BUCKET} of this name"


def _status(error: BaseException) -> str:
    """The HTTP status that a client tells in its text or, botocore, in its answer; else empty."""
    for each in (error, error.__cause__):  # s3fs makes an OSError of botocore's
        answer = getattr(each, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    groups = (group for match in _STATUS.finditer(str(error)) for group in match.groups())
    return next((group for group in groups if group), "")


def is_of_disk(error: BaseException) -> bool:
    """True for what the operating system says of a file of this machine."""
    if not isinstance(error, OSError) or error.errno is None or of_client(error):
        return False
    of_network = isinstance(error, (ConnectionError, TimeoutError, socket.gaierror))
    return not of_network and error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH)


class StorageError(UserError):
    """A storage failure that stops a job; `code` as `classify` gives it."""

    def __init__(self, message: str, code: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str, int]]:
        return StorageError, (str(self), self.code, self.exit_code)

    @property
    def may_pass(self) -> bool:
        """True if the same command may work later: the store or the way to it is down."""
        return self.code in ("timeout", "unavailable")


def passes(error: BaseException) -> bool:
    """True for a failure of the store or the network after which the same request may succeed.

    Nothing is known then of a write: it may have been made, or may still be made later.
    """
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    code, _ = classify(error)
    status = _status(error)
    down = status in ("", "408", "429") or status.startswith("5")
    return of_client(error) and (code == "timeout" or (code == "unavailable" and down))


def is_unsupported(error: BaseException) -> bool:
    """True if the store answers that it doesn't implement what was asked for (501)."""
    return of_client(error) and _status(error) == "501"


def of_storage(error: BaseException) -> bool:
    """True if a storage client raised this."""
    return isinstance(error, OSError) or of_client(error)


def of_client(error: BaseException | None) -> bool:
    """True for a client's own exception, and for what s3fs makes of one."""
    if type(error).__module__.partition(".")[0] in CLIENTS:
        return True
    return isinstance(error, OSError) and error.__cause__ is not None and of_client(error.__cause__)


def store_failure(
    error: BaseException, what: str = "a request to the store failed"
) -> UserError | None:
    """The sentence if a request to a store failed behind `error`, such as in one of Ray's tasks.

    None if it is anything else. For whoever has reached the store before: one that nobody answers
    for any more is down, so the same command may work later.
    """
    for cause in causes(error):
        if isinstance(cause, StorageError):
            return cause
        if of_client(cause):
            return as_lost(cause, what)
    return None


def machine_failure(error: BaseException) -> UserError | None:
    """The sentence if this machine's disk is full, or may not be written, behind `error`.

    Whatever library met it: DuckDB, Ray and others say it in words of their own. None if it is
    anything else.
    """
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in (*_NO_ROOM, errno.EROFS):
            return _of_disk(cause, "can't write on this machine", "unavailable", str(cause))
        if "No space left on device" in str(cause) or "Disk quota exceeded" in str(cause):
            line = next(
                line for line in str(cause).splitlines() if "space" in line or "quota" in line
            )
            return UserError(f"a disk of this machine is full: {line.strip()[:300]}; make room")
    return None


def as_lost(error: BaseException, what: str) -> UserError:
    """The same in the middle of a job: what another call may mend asks for one."""
    sentence = as_user_error(error, what)
    if sentence.may_pass:
        return TryAgainError(f"{sentence}; what is written stays: run the same command again")
    return sentence


def as_user_error(error: BaseException, what: str) -> StorageError:
    """The sentence for a storage failure outside the image stream, where it must stop the job.

    Exit code 75 for a store that fails, 2 for what may be the caller's: an endpoint that is not
    there, a bucket, credentials, a local path.
    """
    code, line = classify(error)
    if is_of_disk(error) and code in ("unavailable", "forbidden"):
        return _of_disk(error, what, code, line)
    if "RequestTimeTooSkewed" in str(error):
        clock = "this machine's clock is wrong: set it"
        return StorageError(f"{what}: {line} ({code}: {clock})", code)
    mend = {
        "not_found": "check the path and the bucket's name",
        "forbidden": "check the credentials and the bucket's policy",
        "timeout": "check the network and the endpoint",
        "archived": "restore it from the archive tier first",
        "unavailable": "check the endpoint and the network",
    }[code]
    if is_of_disk(error):
        mend = "check the path"
    elif line.startswith(_NO_BUCKET):
        mend = "check its name and the endpoint"
    if type(error) is OSError and error.errno is None and not of_client(error):
        mend = "check the file"  # Arrow's, of bytes that it can't read
    exit_code = EXIT_TRY_AGAIN if _is_down(error, code) else EXIT_USAGE
    return StorageError(f"{what}: {line} ({code}: {mend})", code, exit_code)


def _of_disk(error: BaseException, what: str, code: str, line: str) -> StorageError:
    number = getattr(error, "errno", None)
    if number in _NO_ROOM:
        mend = "the disk is full: make room, or choose another folder"
    elif number == errno.EROFS or code == "forbidden":
        mend = "check who may read and write there"
    else:
        mend = "check the disk"
    return StorageError(f"{what}: {line} ({mend})", code)


def _is_down(error: BaseException, code: str) -> bool:
    if code != "unavailable" or not of_client(error):
        return code == "timeout"
    mistyped = any(mark in str(error) for mark in _NEVER_REACHED)
    status = _status(error)
    return not mistyped and (status in ("", "408", "429") or status.startswith("5"))
