"""Remote files that a library needs as a local path (weights, lists, truth), kept once per node."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from pipeline.scratch import cache_folder
from pipeline.storage.local import TEMPORARY
from pipeline.storage.storage import Storage, normalize


def local_copy(url: str, options: Mapping[str, str] | None = None) -> Path:
    """A local path with the content of `url`: itself if local, else a copy cached on this node.

    The cache key holds the store's own marks (ETag, size, time), so a replaced file is fetched
    again. A folder is copied whole. Raises FileNotFoundError.
    """
    if "://" not in normalize(url):
        path = Path(normalize(url))
        if not path.exists():
            raise FileNotFoundError(str(path))
        return path
    storage = Storage(url, options)
    filesystem = storage.fsspec
    remote = filesystem._strip_protocol(storage.url)
    info = filesystem.info(remote)
    marks = [str(info.get(k)) for k in ("ETag", "etag", "size", "LastModified", "mtime")]
    digest = hashlib.sha256("\n".join([storage.url, *marks]).encode()).hexdigest()[:16]
    target = cache_folder() / digest / storage.url.rpartition("/")[2]
    if not target.exists():
        temporary = target.parent.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        try:
            filesystem.get(
                remote, str(temporary / target.name), recursive=info["type"] == "directory"
            )
            target.parent.mkdir(exist_ok=True)
            os.replace(temporary / target.name, target)
        except OSError:
            if not target.exists():  # another process of this node may have been quicker
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target
