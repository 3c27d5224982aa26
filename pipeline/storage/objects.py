"""Objects by absolute URI, of any scheme: GET, object info, and URIs of names in lists."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.storage.archive_folder import member_at
from pipeline.storage.entry import Entry, Fetched
from pipeline.storage.local import LocalObjects
from pipeline.storage.s3 import S3Objects
from pipeline.storage.storage import (
    S3_SCHEMES,
    FsspecObjects,
    Objects,
    Storage,
    filesystem_of,
    open_file,
)


def place_of(root: str, name: str) -> str:
    """The URI of a file that a list or a JSON names: a URL or an absolute path is taken as it is.

    Any other name is relative to the folder `root`, and may begin with `./` and `../`.
    """
    if "://" in name or name.startswith("/"):
        return name
    if root.endswith("#"):  # an archive
        return f"{root}{name}"
    while True:
        if name.startswith("./"):
            name = name[2:].lstrip("/")
        elif name.startswith("../") and root.count("/") > (2 if "://" in root else 0):
            root, name = root.rpartition("/")[0], name[3:].lstrip("/")
        else:
            return f"{root}/{name}"


def open_object(uri: str, options: Mapping[str, str] | None = None) -> tuple[Storage, str]:
    """(folder, name in the folder) of an object, or of an archive's member.

    In S3 a slash is part of a key, so the folder of an S3 URI is the bucket.
    """
    if (member := member_at(uri, options)) is not None:
        return member
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme in S3_SCHEMES and key:
        return Storage(f"{scheme}://{bucket}", options), key
    return open_file(uri, options)


def read_named(folder: Storage, name: str) -> bytes:
    """The content of the file `place_of(folder.url, name)`. Raises FileNotFoundError."""
    uri = place_of(folder.url, name)
    if uri == folder.join(name):
        return folder.read(name)
    storage, last = open_object(uri, folder.options)
    return storage.read(last)


def info_uri(uri: str, options: Mapping[str, str]) -> Entry:
    """The object info (size, ETag, time) of an absolute URI. Raises FileNotFoundError."""
    folder, name = open_object(uri, options)
    return folder.info(name)


class Gets:
    """GETs of absolute URIs of any scheme, without retries; keeps one client per bucket or host."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._settings = tuple(sorted(options.items()))
        self._clients: dict[str, Objects] = {}

    async def get(self, uri: str) -> Fetched:
        """Raises what the client raises."""
        objects, key = self._locate(uri)
        return await objects.get_async(key)

    async def get_range(self, uri: str, start: int, length: int, etag: str | None) -> Fetched:
        """Bytes of an object. Raises what the client raises, also for another ETag (S3 alone)."""
        objects, key = self._locate(uri)
        return await objects.get_range_async(key, start, length, etag)

    async def is_encrypted(self, uri: str) -> bool:
        """True if the object's encryption is not SSE-S3 (SSE-KMS ...), so that its ETag is no MD5.

        Raises what the client raises, unless the store refuses the HEAD.
        """
        objects, key = self._locate(uri)
        return isinstance(objects, S3Objects) and await objects.is_encrypted(key)

    def _locate(self, uri: str) -> tuple[Objects, str]:
        """(store, key within the store) of a URI."""
        scheme, separator, rest = uri.partition("://")
        host, _, key = rest.partition("/")
        url = f"{scheme}://{host}" if separator else "/"
        if url not in self._clients:
            self._clients[url], _ = filesystem_of(url, self._settings)
        objects = self._clients[url]
        if isinstance(objects, FsspecObjects):
            return objects, str(objects.filesystem._strip_protocol(uri))
        if isinstance(objects, LocalObjects):
            return objects, rest if separator else uri
        return objects, key
