"""Object info (size, ETag, time) of images without a listing, by one HEAD an image.

Shards are bounded by bytes, but a list of URIs has no sizes: the bytes are estimated from the sizes
of a sample. A retry of an image that was replaced needs the object info of the new object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa

from pipeline.planning.scratch_db import Staging
from pipeline.schema import MANIFEST_SCHEMA, MEMBER_COLUMNS
from pipeline.storage.archive_folder import ArchiveFolder
from pipeline.storage.archives import kind_of
from pipeline.storage.entry import Entry
from pipeline.storage.objects import info_uri, open_object

THREADS: Final = 32
SAMPLE: Final = 200
OBJECT_INFO: Final = ("size", "etag", "last_modified", *MEMBER_COLUMNS)


def ask(uris: Sequence[str], options: Mapping[str, str]) -> list[Entry | None]:
    """The object info of each URI, in order; None if the request fails."""

    def info(uri: str) -> Entry | None:
        try:
            return info_uri(uri, options)
        # The fetch will fail alike, and write an error row.
        except Exception:  # noqa: BLE001
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(info, uris))


def unknown_bytes(staging: Staging, view: str, options: Mapping[str, str]) -> int:
    """The estimated bytes of all images of `view` that have no size; 0 if no size can be read."""
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
    """Create the table `name` with the object info of `images`, where a HEAD gives it.

    images: (file_name, URI).
    """
    asked = zip(images, ask([uri for _, uri in images], options), strict=True)
    rows = [
        {**entry._asdict(), "file_name": name, **_of_member(uri, options)}
        for (name, uri), entry in asked
        if entry
    ]
    schema = pa.schema([MANIFEST_SCHEMA.field(column) for column in ("file_name", *OBJECT_INFO)])
    staging.connection.register("asked_now", pa.Table.from_pylist(rows, schema=schema))
    staging.connection.execute(f"create table {name} as from asked_now")
    staging.connection.unregister("asked_now")


def _of_member(uri: str, options: Mapping[str, str]) -> dict[str, Any]:
    """What differs in the object info of an archive's member; empty for other images."""
    folder, name = open_object(uri, options)
    if not isinstance(folder, ArchiveFolder):
        return {}
    member = folder.member(name)
    return {
        "etag": folder.entry.etag,
        "member_archive": kind_of(folder.name),
        "member_offset": member.offset,
        "member_length": member.length,
        "member_crc32": member.crc32,
    }
