"""Object info (size, ETag, time) of single images, asked where no listing holds it.

A list of URIs says nothing of sizes, and shards are bounded by bytes: so a sample of its images is
asked, and the rest taken to be like it. An image that failed because another object has come under
its name can only be had by its new object info: so a retry asks for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa

from pipeline.planning.scratch_db import Staging
from pipeline.schema import MANIFEST_SCHEMA
from pipeline.storage.entry import Entry
from pipeline.storage.objects import info_uri

THREADS: Final = 32
SAMPLE: Final = 200


def ask(uris: Sequence[str], options: Mapping[str, str]) -> list[Entry | None]:
    """The object info of each image now; None for one that can't be asked."""

    def one(uri: str) -> Entry | None:
        try:
            return info_uri(uri, options)
        # Whatever it is, the fetch will meet it again and say so in the image's row.
        except Exception:  # noqa: BLE001
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, uris))


def unknown_bytes(staging: Staging, view: str, options: Mapping[str, str]) -> int:
    """An estimate of the bytes of those images whose size no listing told."""
    images = staging.count(f"select count(*) from {view} where size is null")
    if not images:
        return 0
    # The smallest hashes are a uniform sample of the names.
    chosen = f"select uri from {view} where size is null order by hash limit {SAMPLE}"
    uris = [uri for (uri,) in staging.connection.execute(chosen).fetchall()]
    sizes = [entry.size for entry in ask(uris, options) if entry is not None]
    return int(images * sum(sizes) / len(sizes)) if sizes else 0


def stage_object_info(
    staging: Staging, name: str, images: Sequence[tuple[str, str]], options: Mapping[str, str]
) -> None:
    """A table of the object info of these images (file_name, URI) now, where it can be had."""
    asked = zip(images, ask([uri for _, uri in images], options), strict=True)
    there = [(file_name, entry) for (file_name, _), entry in asked if entry is not None]
    columns = {
        "file_name": [file_name for file_name, _ in there],
        "size": [entry.size for _, entry in there],
        "etag": [entry.etag for _, entry in there],
        "last_modified": [entry.last_modified for _, entry in there],
    }
    schema = pa.schema([MANIFEST_SCHEMA.field(column) for column in columns])
    table = pa.table(columns, schema=schema)
    staging.connection.register("asked_now", table)
    staging.connection.execute(f"create table {name} as from asked_now")
    staging.connection.unregister("asked_now")
