"""The only door to file systems: a `Storage` is a folder on any fsspec URL.

A write is atomic or it did not happen: one PUT in object stores, temp file and rename on a local
disk. Nothing is ever streamed to its final name, because a stream that fails half-way publishes
the half (s3fs and pyarrow close the upload when the `with` block is left by an exception).
S3 goes through `pipeline.storage.s3`, local paths through `pipeline.storage.local`, the rest
through fsspec.
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
import pyarrow.fs
from fsspec.core import url_to_fs

from pipeline.errors import UserError
from pipeline.secrets import refuse_user_info
from pipeline.storage import conditional
from pipeline.storage.conditional import Limits
from pipeline.storage.entry import Entry, Fetched, bare_etag
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


# file:/x, file:///x and file://localhost/x are one file; what follows file:// may be relative.
LOCAL_URL = re.compile(r"^(?:file|local):(?://(?:localhost(?=/))?|(?=/))", re.IGNORECASE)


class Objects(Protocol):
    """What a store must do; keys are absolute within it."""

    def get(self, key: str) -> Fetched: ...
    async def get_async(self, key: str) -> Fetched: ...
    def put(self, key: str, data: bytes) -> None: ...
    def limits(self, *, large: bool) -> Limits: ...
    def look(self, key: str) -> Fetched | None: ...
    def create(self, key: str, data: bytes, *, large: bool) -> bool: ...
    def replace(self, key: str, old: Fetched, new: bytes) -> bool: ...
    def refuses_stale(self, key: str) -> bool: ...
    def info(self, key: str) -> Entry: ...
    def delete(self, key: str) -> None: ...
    def list(self, prefix: str) -> Iterator[Entry]: ...


class FsspecObjects:
    """Memory, HTTP, and every other scheme that fsspec knows."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem) -> None:
        self.filesystem = filesystem

    def get(self, key: str) -> Fetched:
        return Fetched(bytes(self.filesystem.cat_file(key)), None)  # type: ignore[arg-type]

    async def get_async(self, key: str) -> Fetched:
        return await asyncio.to_thread(self.get, key)

    def put(self, key: str, data: bytes) -> None:
        self.filesystem.pipe_file(key, data)

    # -- conditional writes, each tried once

    def limits(self, *, large: bool) -> Limits:
        return Limits(tries=6, seconds=40.0, each=10.0)

    def look(self, key: str) -> Fetched | None:
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
        """As good as the scheme allows: two replacements at the same moment may both succeed."""
        if self.look(key) != old:
            return False
        self.put(key, new)
        return True

    def refuses_stale(self, key: str) -> bool:
        return False

    # What a file system has listed before says nothing of what is there now.

    def info(self, key: str) -> Entry:
        self.filesystem.invalidate_cache()
        return _entry(self.filesystem.info(key))

    def delete(self, key: str) -> None:
        self.filesystem.rm_file(key)

    def list(self, prefix: str) -> Iterator[Entry]:
        self.filesystem.invalidate_cache()
        for _, _, files in self.filesystem.walk(prefix, detail=True):
            for name in sorted(files):
                yield _entry(files[name])


class SystemClock:
    """This machine's clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Storage:
    """A folder on any fsspec URL; every path is relative to it and uses `/`.

    `options` for s3:// are those of `s3_options` (never a key or a secret); for
    other schemes they go to fsspec as they are. Pickles as its URL and options.
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
        if self.is_s3:  # where each slash is part of a name
            return f"{self.root}/{path}" if self.root and path else self.root or path
        return f"{self.root}/{path}".rstrip("/")

    def join(self, path: str) -> str:
        """The full URL of `path`."""
        return f"{self.url}/{path}"

    def below(self, path: str) -> Storage:
        """A folder in this one."""
        return type(self)(self.join(path), self.options)

    def resolved(self) -> Storage:
        """The same folder, named without links."""
        return Storage(os.path.realpath(self.url), self.options) if self.is_local else self

    def above(self) -> Storage | None:
        """The folder that holds this one; None for the root of a bucket or of a disk."""
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
        """The whole object. Raises FileNotFoundError."""
        return self.objects.get(self.key(path)).data

    async def read_async(self, path: str) -> Fetched:
        return await self.objects.get_async(self.key(path))

    def write(self, path: str, data: bytes) -> None:
        """One PUT (local: temp file and rename): the object is there whole, or not at all."""
        self.objects.put(self.key(path), data)

    def write_if_absent(self, path: str, data: bytes) -> bool:
        """True if this call made the object, False if it was there already with other bytes."""
        return conditional.create(self.objects, self.key(path), data, self.clock)

    def create_shard(self, path: str, data: bytes) -> bool:
        """`write_if_absent` for an object that may take minutes to send, and is tried as long."""
        return conditional.create(self.objects, self.key(path), data, self.clock, large=True)

    def look(self, path: str) -> bytes | None:
        """A small object as it is now, None if it is absent; tried as shortly as `swap`."""
        return conditional.look(self.objects, self.key(path), self.clock)

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """Replace `old` by `new`; False if the object holds anything else by now, or is gone."""
        return conditional.replace(self.objects, self.key(path), old, new, self.clock)

    def sweep(self, path: str) -> int:
        """Delete what killed writers left under a folder: only local disks hold such files."""
        if isinstance(self.objects, LocalObjects):
            return self.objects.sweep(self.key(path))
        return 0

    def info(self, path: str) -> Entry:
        """Object info of one object: size, ETag, time. Raises FileNotFoundError."""
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
        return self.fsspec.open(self.key(path), "rb")  # type: ignore[return-value]

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fsspec))


def s3_filesystem(objects: S3Objects) -> fsspec.AbstractFileSystem:
    """s3fs with the same profile, region and endpoint."""
    return fsspec.filesystem(
        "s3",
        anon=objects.anonymous,
        profile=objects.options.get("profile"),
        endpoint_url=objects.endpoint_url,
        requester_pays=objects.requester_pays,
        client_kwargs={
            "region_name": objects.region,
            **({} if objects.verify is True else {"verify": objects.verify}),
        },
        **(
            {"config_kwargs": {"s3": {"addressing_style": objects.addressing_style}}}
            if objects.addressing_style != "auto"
            else {}
        ),
        use_listings_cache=False,  # an object may be written after its folder was listed
    )


def normalize_url(url: str | os.PathLike[str]) -> str:
    """A URL without a trailing slash; a local path becomes absolute and loses `file://`.

    One folder has one name: what guards it goes by that.
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
    """The store behind a URL, and the key of the URL within it.

    One client for each URL, options and AWS environment of a process.
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
    try:
        filesystem, root = url_to_fs(url, **dict(options))
    except (ValueError, ImportError) as error:
        raise UserError(f"{url!r} can't be opened: {error}") from error
    local = "file" in _protocols(filesystem)
    return LocalObjects() if local else FsspecObjects(filesystem), root.rstrip("/")


def open_file(url: str, options: Mapping[str, str] | None = None) -> tuple[Storage, str]:
    """The folder that holds a file, and the file's name in it."""
    parent, _, name = normalize_url(url).rpartition("/")
    return Storage(parent or "/", options), name


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")  # by whose client


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
