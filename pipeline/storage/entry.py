"""A listed object, a fetched body, and storage failures as error codes and sentences."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from datetime import datetime
from typing import Final, NamedTuple

from pipeline.errors import EXIT_TRY_AGAIN, EXIT_USAGE, TryAgainError, UserError, causes

# Packages whose exceptions are a store's; the last four serve gs:// and az://.
CLIENTS: Final = (
    *("obstore", "botocore", "aiohttp"),
    *("gcsfs", "google.auth", "google.cloud", "azure"),
)


class Entry(NamedTuple):
    """A listed object. path: relative to the listed folder; size: bytes, -1 unknown."""

    path: str
    size: int
    etag: str | None
    last_modified: datetime | None


class Fetched(NamedTuple):
    """One GET's body and the ETag that came with it."""

    data: bytes
    etag: str | None


def bare_etag(etag: str | None) -> str | None:
    """An ETag without quotes and `W/`, which some servers send in a GET and not in a listing."""
    return etag.removeprefix("W/").strip('"') if etag else None


_STATUS = re.compile(r"status code: (\d{3})|status=(\d{3})|\b(4\d\d|5\d\d), message=")
# Text in obstore's message -> words that its first line lacks.
_HINTS = {
    "IncompleteMessage": "the connection broke before an answer",
    "IncompleteBody": "the connection broke in the body",
    "TimedOut": "nothing came any more",
    "ConnectionRefused": "nobody listens there",
}
# Of a path that leads to no file, or that no file can have.
_NO_FILE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Exceptions of clients for a key that they can't request.
_INEXPRESSIBLE: Final = ("InvalidPathError", "ParamValidationError", "InvalidURL")
# Exceptions of clients without credentials, or with ones that the store refused.
_NO_CREDENTIALS: Final = (
    *("PermissionDeniedError", "UnauthenticatedError"),
    *("RefreshError", "DefaultCredentialsError", "ClientAuthenticationError"),
)
_S3_CODE = re.compile(r"<Code>(\w+)</Code>")
# The XML answer of a store within a client's message, and its parts.
_XML = re.compile(r"<\?xml|<Error>")
_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")
_BUCKET = re.compile(r"<BucketName>([^<]+)</BucketName>")
_NO_BUCKET: Final = "there is no bucket"
# Either the endpoint or region is mistyped, or the store is down.
_NEVER_REACHED = ("kind: Connect", "Could not connect to the endpoint", "redirect without LOCATION")


def classify(error: BaseException) -> tuple[str, str]:
    """(error code of `schema.ERROR_CODES`, one line of text) for a failed GET, PUT or listing.

    The text is the first line of the client's message, without query strings, which may hold the
    signature of a presigned URL, and without a store's XML.
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
    hint = next((words for name, words in _HINTS.items() if name in text), None)
    line = line[:500] + (f" ({hint})" if hint else "")
    if type(error).__name__ == "PreconditionError" or status == "412":
        return "changed", "the object was replaced after it was listed"
    if "InvalidObjectState" in text:
        return "archived", line
    if isinstance(error, FileNotFoundError) or status in ("404", "410"):
        return "not_found", line
    if is_of_disk(error) and error.errno in _NO_FILE:  # type: ignore[attr-defined]
        return "not_found", line
    if isinstance(error, ValueError) or type(error).__name__ in _INEXPRESSIBLE:
        return "not_found", f"the store's client can't ask for this name: {line}"
    refused = isinstance(error, PermissionError) or status in ("401", "403")
    if refused or type(error).__name__ in _NO_CREDENTIALS:
        return "forbidden", line
    if (
        isinstance(error, (TimeoutError, asyncio.TimeoutError))
        or "timed out" in text.lower()
        or ("TimedOut" in text)
    ):
        return "timeout", line
    return "unavailable", line


def _without_xml(line: str) -> str:
    """The client's words, and only `<Message>` of the store's XML."""
    answer = _XML.search(line)
    if answer is None:
        return line
    message = _MESSAGE.search(line, answer.start())
    return line[: answer.start()].rstrip(" :") + (f": {message[1]}" if message else "")


def _no_bucket(error: BaseException, text: str) -> str:
    bucket = _BUCKET.search(text)
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    name = bucket[1] if bucket else None
    if name is None and isinstance(answer, dict):
        name = answer.get("Error", {}).get("BucketName")
    return f"{_NO_BUCKET} {name!r}" if name else f"{_NO_BUCKET} of this name"


def _status(error: BaseException) -> str:
    """The HTTP status in a client's message, attribute or response; empty if there is none."""
    for cause in (error, error.__cause__):  # s3fs wraps botocore's error in an OSError
        stated = getattr(cause, "status_code", None) or getattr(cause, "code", None)
        if of_client(cause) and str(stated).isdecimal():  # of azure and gcsfs
            return str(stated)
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    groups = (group for match in _STATUS.finditer(str(error)) for group in match.groups())
    return next((group for group in groups if group), "")


def is_of_disk(error: BaseException) -> bool:
    """True for an OSError of the operating system about a file of this machine."""
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
        """True if the same command may succeed later: the store or the network is down."""
        return self.code in ("timeout", "unavailable")


def passes(error: BaseException) -> bool:
    """True for a failure of the store or the network after which the same request may succeed.

    A write that failed so may have been made, or may still be made later.
    """
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    code, _ = classify(error)
    return of_client(error) and (
        code == "timeout" or (code == "unavailable" and _of_busy_store(error))
    )


def _of_busy_store(error: BaseException) -> bool:
    """True if the store gave no answer, or one that may be another next time."""
    status = _status(error)
    return status in ("", "408", "429") or status.startswith("5")


def is_unsupported(error: BaseException) -> bool:
    """True if the store answered 501 Not Implemented."""
    return of_client(error) and _status(error) == "501"


def of_storage(error: BaseException) -> bool:
    """True for an OSError or the exception of a storage client (`of_client`)."""
    return isinstance(error, OSError) or of_client(error)


def of_client(error: BaseException | None) -> bool:
    """True for an exception of one of `CLIENTS`, also where s3fs wrapped it."""
    module = f"{type(error).__module__}."
    if any(module.startswith(f"{client}.") for client in CLIENTS):
        return True
    return isinstance(error, OSError) and error.__cause__ is not None and of_client(error.__cause__)


def store_failure(
    error: BaseException, what: str = "a request to the store failed"
) -> UserError | None:
    """The UserError if a failed request to a store caused `error`, such as within a Ray task.

    None for any other cause. Only for a store that has answered before: a store that does not
    answer any more is then down, so the same command may succeed later (TryAgainError).
    """
    for cause in causes(error):
        if isinstance(cause, StorageError):
            return cause
        if of_client(cause):
            return as_lost(cause, what)
    return None


def machine_failure(error: BaseException) -> UserError | None:
    """The UserError if a full or read-only disk of this machine caused `error`, in any library.

    None for any other cause.
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
    """`as_user_error` in the middle of a job: a TryAgainError if the failure `may_pass`."""
    sentence = as_user_error(error, what)
    if sentence.may_pass:
        return TryAgainError(f"{sentence}; what is written stays: run the same command again")
    return sentence


def as_user_error(error: BaseException, what: str) -> StorageError:
    """The sentence for a storage failure that stops the job. what: the beginning of the sentence.

    Exit code 75 for a store that is down, 2 where the user may be at fault: endpoint, bucket,
    credentials, local path.
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
        mend = "check the file"  # Arrow can't read the bytes
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
    mistyped = any(text in str(error) for text in _NEVER_REACHED)
    return not mistyped and _of_busy_store(error)
