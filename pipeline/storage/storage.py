"""`Storage`: a folder on any fsspec URL, read, written and listed by relative path.

A write is atomic: one PUT in object stores, temporary file and rename on a local disk. No object is
streamed to its final name, because a stream that fails half-way would publish the half (s3fs and
pyarrow complete the upload when an exception leaves the `with` block). `pipeline.storage.s3` serves
S3, `pipeline.storage.local` local paths, fsspec all other schemes.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import IO, Any, Protocol

import fsspec

from pipeline.errors import UserError
from pipeline.secrets import refuse_user_info
from pipeline.storage import conditional
from pipeline.storage.conditional import Limits
from pipeline.storage.entry import Entry, Fetched, as_user_error, bare_etag
from pipeline.storage.first_answer import first_answer, open_filesystem
from pipeline.storage.local import LocalObjects
from pipeline.storage.s3 import S3Objects

AWS_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
)

S3_SCHEMES = ("s3", "s3a", "s3n")
# file:/x, file:///x and file://localhost/x are one file; a path after file:// may be relative.
LOCAL_URL = re.compile(r"^(?:file|local):(?://(?:localhost(?=/))?|(?=/))", re.IGNORECASE)


class Objects(conditional.Conditional, Protocol):
    """The requests that a store answers; keys are absolute within the store."""

    def get(self, key: str) -> Fetched: ...
    async def get_async(self, key: str) -> Fetched: ...
    def get_range(self, key: str, start: int, length: int, etag: str | None) -> Fetched: ...
    async def get_range_async(
        self, key: str, start: int, length: int, etag: str | None
    ) -> Fetched: ...
    def put(self, key: str, data: bytes) -> None: ...
    def refuses_stale(self, key: str) -> bool: ...
    def info(self, key: str) -> Entry: ...
    def list(self, prefix: str) -> Iterator[Entry]: ...


class FsspecObjects:
    """Objects through fsspec: memory, HTTP and every other scheme except S3 and local files."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem) -> None:
        self.filesystem = filesystem

    def get(self, key: str) -> Fetched:
        return Fetched(bytes(self.filesystem.cat_file(key)), None)  # type: ignore[arg-type]

    async def get_async(self, key: str) -> Fetched:
        return await asyncio.to_thread(self.get, key)

    def get_range(self, key: str, start: int, length: int, etag: str | None) -> Fetched:
        """Bytes from `start`; fsspec sends no condition."""
        data = self.filesystem.cat_file(key, start=start, end=start + length)
        return Fetched(bytes(data), None)  # type: ignore[arg-type]

    async def get_range_async(self, key: str, start: int, length: int, etag: str | None) -> Fetched:
        return await asyncio.to_thread(self.get_range, key, start, length, etag)

    def put(self, key: str, data: bytes) -> None:
        self.filesystem.pipe_file(key, data)

    # -- requests of conditional.py: no retries

    def limits(self, *, large: bool) -> Limits:
        return Limits(tries=6, seconds=40.0, each=10.0)

    def look(self, key: str) -> Fetched | None:
        first_answer(self.filesystem, key)
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def create(self, key: str, data: bytes, *, large: bool) -> bool:
        try:
            self.filesystem.pipe_file(key, data, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, key: str, old: Fetched, new: bytes) -> bool:
        """Compare, then write: two replacements at the same moment may both succeed."""
        if self.look(key) != old:
            return False
        self.put(key, new)
        return True

    def refuses_stale(self, key: str) -> bool:
        return False

    # fsspec caches listings, which may be out of date.

    def info(self, key: str) -> Entry:
        first_answer(self.filesystem, key)
        self.filesystem.invalidate_cache()
        return _entry(self.filesystem.info(key))

    def delete(self, key: str) -> None:
        self.filesystem.rm_file(key)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Every object under the folder. Raises what the client raises for any folder in it.

        fsspec's `walk` leaves out a folder that can't be listed: its images would count as removed.
        """
        first_answer(self.filesystem, prefix)
        self.filesystem.invalidate_cache()
        pending = [prefix]
        while pending:
            folder = pending.pop()
            try:
                listed = self.filesystem.ls(folder, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for info in sorted(listed, key=lambda info: info["name"]):
                if info["type"] != "directory":
                    yield _entry(info)
                elif info["name"].rstrip("/") != folder.rstrip("/"):  # else the folder's own entry
                    pending.append(info["name"])


class SystemClock:
    """This machine's clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Storage:
    """A folder on any fsspec URL; paths are relative to the folder and use `/`.

    options: for s3:// those of `s3_options` (never a key or a secret); for other schemes passed to
    fsspec. Pickles as its URL and options.
    """

    clock: conditional.Clock = SystemClock()

    def __init__(
        self, url: str | os.PathLike[str], options: Mapping[str, str] | None = None
    ) -> None:
        self.url = normalize_url(url)
        self.options = dict(options or {})
        self.objects, self.root = filesystem_of(self.url, tuple(sorted(self.options.items())))

    def __reduce__(self) -> tuple[type[Storage], tuple[str, dict[str, str]]]:
        return Storage, (self.url, self.options)

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def key(self, path: str) -> str:
        if self.is_s3:  # a trailing slash is part of an S3 key
            return f"{self.root}/{path}" if self.root and path else self.root or path
        return f"{self.root}/{path}".rstrip("/")

    def join(self, path: str) -> str:
        """The full URL of `path`."""
        return f"{self.url}/{path}"

    def below(self, path: str) -> Storage:
        """The folder `path` within this folder."""
        return type(self)(self.join(path), self.options)

    def resolved(self) -> Storage:
        """The same folder by its path without symbolic links."""
        return Storage(os.path.realpath(self.url), self.options) if self.is_local else self

    def above(self) -> Storage | None:
        """The parent folder; None for the root of a bucket or of a disk."""
        parent, _, name = self.url.rpartition("/")
        if not name or not parent or parent.endswith(":/"):
            return None
        return type(self)(parent, self.options)

    @property
    def is_s3(self) -> bool:
        return isinstance(self.objects, S3Objects)

    @property
    def is_local(self) -> bool:
        return isinstance(self.objects, LocalObjects)

    def read(self, path: str) -> bytes:
        """The content of an object. Raises FileNotFoundError."""
        return self.objects.get(self.key(path)).data

    def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
        """`length` bytes of an object from `start`, fewer at its end.

        With `etag`, raises what the client raises for a failed condition if the object has another
        ETag by now (S3 alone).
        """
        return self.objects.get_range(self.key(path), start, length, etag).data

    def write(self, path: str, data: bytes) -> None:
        """Write or overwrite an object atomically: one PUT (local: temporary file and rename)."""
        self.objects.put(self.key(path), data)

    def write_if_absent(self, path: str, data: bytes) -> bool:
        """True if the object now holds `data`, False if it exists with other bytes."""
        return conditional.create(self.objects, self.key(path), data, self.clock)

    def create_shard(self, path: str, data: bytes) -> bool:
        """`write_if_absent` with longer limits, for an object that may take minutes to send."""
        return conditional.create(self.objects, self.key(path), data, self.clock, large=True)

    def look(self, path: str) -> bytes | None:
        """The content of a small object, None if it is absent; with the short limits of `swap`."""
        return conditional.look(self.objects, self.key(path), self.clock)

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """Replace `old` by `new`; False if the object holds other bytes or is absent."""
        return conditional.replace(self.objects, self.key(path), old, new, self.clock)

    def sweep(self, path: str) -> int:
        """Delete temporary files of killed writers under a folder; returns their number.

        Only local disks hold such files.
        """
        if isinstance(self.objects, LocalObjects):
            return self.objects.sweep(self.key(path))
        return 0

    def info(self, path: str) -> Entry:
        """The object info (size, ETag, time) of an object. Raises FileNotFoundError."""
        return self.objects.info(self.key(path))._replace(path=path)

    def size(self, path: str) -> int:
        return self.info(path).size

    def exists(self, path: str) -> bool:
        try:
            self.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def delete(self, path: str) -> None:
        conditional.delete(self.objects, self.key(path), self.clock)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every object under the folder `prefix`, recursively; an absent folder lists nothing."""
        start = len(self.root) + 1 if self.root else 0
        for entry in self.objects.list(self.key(prefix)):
            yield entry._replace(path=entry.path[start:])

    @property
    def fsspec(self) -> fsspec.AbstractFileSystem:
        """The fsspec file system, for ranged reads."""
        if isinstance(self.objects, S3Objects):
            return s3_filesystem(self.objects)
        if isinstance(self.objects, FsspecObjects):
            return self.objects.filesystem
        return fsspec.filesystem("file")

    def open(self, path: str) -> IO[bytes]:
        """A seekable reader that fetches only the ranges that are read."""
        if isinstance(self.objects, S3Objects):
            return self.fsspec.open(f"{self.objects.bucket}/{self.key(path)}", "rb")  # type: ignore[return-value]
        if isinstance(self.objects, FsspecObjects):
            first_answer(self.objects.filesystem, self.key(path))
        return self.fsspec.open(self.key(path), "rb")  # type: ignore[return-value]


def s3_filesystem(objects: S3Objects) -> fsspec.AbstractFileSystem:
    """An s3fs file system with the settings of `objects`."""
    verify = {} if objects.verify is True else {"verify": objects.verify}
    style = {"addressing_style": objects.addressing_style}
    return fsspec.filesystem(
        "s3",
        anon=objects.anonymous,
        profile=objects.options.get("profile"),
        endpoint_url=objects.endpoint_url,
        requester_pays=objects.requester_pays,
        client_kwargs={"region_name": objects.region, **verify},
        config_kwargs={} if objects.addressing_style == "auto" else {"s3": style},
        use_listings_cache=False,  # an object may be written after its folder was listed
    )


def normalize_url(url: str | os.PathLike[str]) -> str:
    """A URL without trailing slash; a local path becomes absolute and loses `file://`.

    One folder has one URL, which its lease relies on. Raises UserError.
    """
    text = os.fspath(url)
    if not text.strip():
        raise UserError("an empty path was given where a folder or URL is needed")
    if "\0" in text:
        raise UserError("a path or URL can't hold a zero byte")
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        raise UserError(
            f"{shown} is not UTF-8: rename it, or give a link to it with another name"
        ) from None
    text = LOCAL_URL.sub("", text)
    if "://" not in text:
        return "/" + os.path.abspath(os.path.expanduser(text)).strip("/")
    refuse_user_info(text)
    scheme, _, rest = text.partition("://")
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def filesystem_of(url: str, options: tuple[tuple[str, str], ...]) -> tuple[Objects, str]:
    """(store, key within the store) of a URL. Raises UserError.

    Cached within a process by URL, options and AWS environment variables.
    """
    return _connect(url, options, tuple((name, os.environ.get(name)) for name in AWS_VARIABLES))


@lru_cache(maxsize=256)
def _connect(
    url: str,
    options: tuple[tuple[str, str], ...],
    environment: tuple[tuple[str, str | None], ...],
) -> tuple[Objects, str]:
    scheme, separator, rest = url.partition("://")
    if separator and scheme in S3_SCHEMES:
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise UserError(f"{url!r} names no bucket: write s3://BUCKET/PREFIX")
        return S3Objects(bucket, dict(options)), key
    if not separator:  # not by fsspec, which takes `::` for a chain of URLs
        return LocalObjects(), url.rstrip("/")
    try:
        filesystem, root = open_filesystem(url, dict(options))
    except TimeoutError as error:
        raise as_user_error(error, f"{url} can't be opened") from error
    except (ValueError, ImportError) as error:
        raise UserError(f"{url!r} can't be opened: {error}") from error
    return FsspecObjects(filesystem), root.rstrip("/")


def open_file(url: str, options: Mapping[str, str] | None = None) -> tuple[Storage, str]:
    """(folder, name in the folder) of a file."""
    parent, _, name = normalize_url(url).rpartition("/")
    return Storage(parent or "/", options), name


# The time in `info` of fsspec's clients.
MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")


def _entry(info: dict[str, Any]) -> Entry:
    modified = next((info[name] for name in MODIFIED if info.get(name) is not None), None)
    if isinstance(modified, (int, float)):
        modified = datetime.fromtimestamp(modified, UTC)
    if isinstance(modified, str):
        with suppress(ValueError):
            modified = datetime.fromisoformat(modified)
    if not isinstance(modified, datetime):
        modified = None
    elif modified.tzinfo is None:
        modified = modified.replace(tzinfo=UTC)
    etag = bare_etag(info.get("ETag") or info.get("etag"))
    return Entry(info["name"], int(info.get("size") or 0), etag, modified)
