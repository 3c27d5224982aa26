"""Objects by their absolute URIs, of any scheme and of as many stores as a manifest names."""

from __future__ import annotations

from collections.abc import Mapping

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
    """Where a file lies that a list or a JSON names: an absolute path or a URL is the file itself.

    Any other name is relative to the folder `root`, with `./` and `../` before it as in a path.
    """
    if "://" in name or name.startswith("/"):
        return name
    while True:
        if name.startswith("./"):
            name = name[2:].lstrip("/")
        elif name.startswith("../") and root.count("/") > (2 if "://" in root else 0):
            root, name = root.rpartition("/")[0], name[3:].lstrip("/")
        else:
            return f"{root}/{name}"


def open_object(uri: str, options: Mapping[str, str] | None = None) -> tuple[Storage, str]:
    """A folder above an object, and the object's name in it, by an URI as a manifest holds it.

    In a bucket each slash is part of a key, so the folder is the bucket itself.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme in S3_SCHEMES and key:
        return Storage(f"{scheme}://{bucket}", options), key
    return open_file(uri, options)


def read_named(folder: Storage, name: str) -> bytes:
    """The file that `name` means beside `folder` (`place_of`). Raises FileNotFoundError."""
    where = place_of(folder.url, name)
    if where == folder.join(name):
        return folder.read(name)
    storage, last = open_object(where, folder.options)
    return storage.read(last)


def info_uri(uri: str, options: Mapping[str, str]) -> Entry:
    """The object info of an absolute URI of any scheme. Raises FileNotFoundError."""
    folder, name = open_object(uri, options)
    return folder.info(name)


class Gets:
    """GETs of absolute URIs of any scheme, each tried once.

    The client of each bucket or host is looked up once: for every image that would be felt.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        self._settings = tuple(sorted(options.items()))
        self._clients: dict[str, Objects] = {}

    async def get(self, uri: str) -> Fetched:
        """Raises what the client raises."""
        scheme, separator, rest = uri.partition("://")
        host, _, key = rest.partition("/")
        objects = self._client(f"{scheme}://{host}" if separator else "/")
        if isinstance(objects, S3Objects):
            return await objects.get_async(key)
        if isinstance(objects, LocalObjects):
            return await objects.get_async(rest if separator else uri)
        assert isinstance(objects, FsspecObjects)
        return await objects.get_async(str(objects.filesystem._strip_protocol(uri)))

    async def is_encrypted(self, uri: str) -> bool:
        """Whether the store says that it encrypts this object so that its ETag is no MD5.

        Raises what the client raises, unless the store refuses to say.
        """
        scheme, _, rest = uri.partition("://")
        host, _, key = rest.partition("/")
        objects = self._client(f"{scheme}://{host}")
        return isinstance(objects, S3Objects) and await objects.is_encrypted(key)

    def _client(self, place: str) -> Objects:
        if place not in self._clients:
            self._clients[place], _ = filesystem_of(place, self._settings)
        return self._clients[place]
