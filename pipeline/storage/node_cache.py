"""Local copies of remote files (weights, lists, truth), cached once per node."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from pipeline.errors import UserError
from pipeline.scratch import cache_folder
from pipeline.storage.local import TEMPORARY
from pipeline.storage.storage import Storage, normalize_url

# Fields of fsspec's `info` that change when an object is replaced.
OBJECT_INFO: Final = (
    *("ETag", "etag", "size", "LastModified", "Last-Modified", "last_modified", "mtime", "updated"),
    *("Content-MD5", "md5Hash", "generation", "VersionId"),
)
TRIES: Final = 3


def local_copy(url: str, options: Mapping[str, str] | None = None) -> Path:
    """The path of a file or folder `url` if it is local, else of a copy cached on this node.

    The cache key holds the object info (ETag, size, time) of every file, which is read from the
    store at each call: a file that was replaced before or during the download is fetched again.
    Raises FileNotFoundError, or UserError if a file changes during every download.
    """
    if "://" not in normalize_url(url):
        path = Path(normalize_url(url))
        if not path.exists():
            raise FileNotFoundError(str(path))
        return path
    storage = Storage(url, options)
    info = _object_info(storage)
    for _ in range(TRIES):
        digest = hashlib.sha256("\n".join([storage.url, *info]).encode()).hexdigest()[:16]
        target = cache_folder() / digest / storage.url.rpartition("/")[2]
        if target.exists():
            return target
        temporary = target.parent.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        try:
            _fetch(storage, temporary / target.name)
            before, info = info, _object_info(storage)
            if info == before:
                _keep(temporary / target.name, target)
                return target
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise UserError(f"{url} was replaced each time that it was fetched: wait until it rests")


def _object_info(storage: Storage) -> list[str]:
    """The object info of a file, or of each file of a folder, as text."""
    if storage.is_s3:
        try:
            entries = [storage.info("")]
        except FileNotFoundError:
            entries = sorted(storage.list())
            if not entries:
                raise
        return [str(tuple(entry)) for entry in entries]
    filesystem = storage.fsspec
    filesystem.invalidate_cache()  # an earlier listing may be out of date
    remote = str(filesystem._strip_protocol(storage.url))
    info = filesystem.info(remote)
    files: dict[str, Any] = {remote: info}
    if info["type"] == "directory":
        files = cast("dict[str, Any]", filesystem.find(remote, detail=True))
    return [
        "\n".join([name, *(f"{field}={files[name].get(field)}" for field in OBJECT_INFO)])
        for name in sorted(files)
    ]


def _fetch(storage: Storage, target: Path) -> None:
    filesystem = storage.fsspec
    filesystem.invalidate_cache()
    remote = filesystem._strip_protocol(storage.url)
    folder = filesystem.info(remote)["type"] == "directory"
    filesystem.get(remote, str(target), recursive=folder)


def _keep(fetched: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        os.replace(fetched, target)
    except OSError:
        if not target.exists():  # another process of this node made it first
            raise
