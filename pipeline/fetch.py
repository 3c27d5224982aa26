"""Work unit -> the bytes of its images, or for each image that can't be had the reason.

A task reads its own slice of the manifest and fetches its images concurrently, one GET an image
and no HEAD. Ray's own `read_images` and `download` were rejected: one dies on a bad file, the
other gives None without saying why. Blocks carry encoded bytes, a tenth of the decoded pixels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from ray.actor import ActorHandle

from pipeline.entry import Fetched, classify
from pipeline.plan import WorkUnit
from pipeline.run import Run
from pipeline.storage import get_uri
from pipeline.tally import check_budget

CONCURRENT_GETS: Final = 64
IMAGE_SECONDS: Final = 180  # over all tries of one image

UNIT_FIELDS: Final = ("generation", "shard")
FETCHED_FIELDS: Final = [
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("data", pa.large_binary()),
]


@dataclass(frozen=True)
class Body:
    """What one GET ended in: bytes, or an error code and a message."""

    data: bytes | None
    code: str | None = None
    message: str | None = None


def fetch_units(
    units: pa.Table,
    *,
    run: Run,
    source_options: Mapping[str, str],
    tally: ActorHandle,
) -> pa.Table:
    """The manifest rows of each unit with `data`, or `error_code` and `error_message`.

    Raises BudgetExceededError, which ends the job, once too large a part of the images failed.
    """
    tables = []
    for row in units.to_pylist():
        unit = WorkUnit(**row)
        manifest = run.read_unit(unit)
        assert manifest.num_rows == unit.images, (unit, manifest.num_rows)
        bodies = asyncio.run(_fetch_all(manifest, source_options))
        codes = [body.code for body in bodies if body.code]
        check_budget(tally.fetched.remote(unit.path, unit.images, codes))
        tables.append(_with_bodies(manifest, unit, bodies))
    return pa.concat_tables(tables)


async def _fetch_all(manifest: pa.Table, options: Mapping[str, str]) -> list[Body]:
    gate = asyncio.Semaphore(CONCURRENT_GETS)

    async def fetch(uri: str, size: int | None, etag: str | None) -> Body:
        async with gate:
            try:
                fetched = await asyncio.wait_for(get_uri(uri, options), IMAGE_SECONDS)
            # Whatever the client raises for one object is that image's error row: there are as
            # many exception types as there are storage back ends.
            except Exception as error:  # noqa: BLE001
                return Body(None, *classify(error))
        return check_body(fetched, size, etag)

    columns = (manifest[name].to_pylist() for name in ("uri", "size", "etag"))
    return await asyncio.gather(*(fetch(*row) for row in zip(*columns, strict=True)))


def check_body(fetched: Fetched, size: int | None, etag: str | None) -> Body:
    """A body that is not the object that was listed is an error, never segmented."""
    if etag and fetched.etag and fetched.etag != etag:
        return Body(None, "changed", f"ETag is {fetched.etag}, was {etag} when listed")
    if size is not None and len(fetched.data) != size:
        if etag and fetched.etag:
            return Body(None, "unavailable", f"body has {len(fetched.data)} bytes of {size}")
        return Body(None, "changed", f"file has {len(fetched.data)} bytes, had {size} when listed")
    return Body(fetched.data)


def _with_bodies(manifest: pa.Table, unit: WorkUnit, bodies: list[Body]) -> pa.Table:
    values: list[list[Any]] = [
        [body.code for body in bodies],
        [body.message for body in bodies],
        [body.data for body in bodies],
    ]
    table = manifest
    for name in UNIT_FIELDS:
        column = pa.repeat(pa.scalar(getattr(unit, name), pa.int32()), len(bodies))
        table = table.append_column(name, column)
    for field, column in zip(FETCHED_FIELDS, values, strict=True):
        table = table.append_column(field, pa.array(column, field.type))
    return table
