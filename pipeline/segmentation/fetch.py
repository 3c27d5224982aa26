"""The fetch task: a work unit in, its manifest rows with encoded bytes or an error code out.

A task reads its slice of the manifest and fetches the images concurrently, one GET per image and no
HEAD. A body must pass the integrity check (length, ETag and, where the ETag is an MD5, its MD5).
Other bodies are fetched again, with backoff and jitter; an image whose tries all fail becomes an
error row. Blocks carry encoded bytes, a tenth of the size of the pixels.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import pyarrow as pa
import uvloop
from ray.actor import ActorHandle
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_result,
    stop_before_delay,
    wait_random_exponential,
)

from detr.inference.decode import begins_as_picture
from detr.inference.formats import no_picture
from pipeline.cluster.progress_actor import begin, check_budget, refusals_told
from pipeline.error_budget import failures_of
from pipeline.errors import UserError
from pipeline.run.run import Run
from pipeline.schema import MEMBER_COLUMNS
from pipeline.secrets import without_query
from pipeline.segmentation.integrity import Md5Check, fault
from pipeline.sharding import WorkUnit
from pipeline.storage.archives import LARGEST_MEMBER, BadMemberError, extract, split_member
from pipeline.storage.entry import Fetched, as_lost, classify
from pipeline.storage.objects import Gets

CONCURRENT_GETS: Final = 64
# Error codes that another try may mend, with the most tries that may end in each; other codes are
# final. Where half of all tries fail, 30 tries leave one failed image in a billion; the waits take
# one or two minutes. A replaced object stays replaced, unless a cache gave the old one.
TRIES: Final = {"unavailable": 30, "timeout": 30, "changed": 3}
# Seconds drawn between 0 and a bound that doubles with each try, from 0.1 to 5.
BACKOFF: Final = wait_random_exponential(multiplier=0.1, max=5.0)
IMAGE_SECONDS: Final = 180.0  # for all tries of one image, plus the time at SLOWEST_BYTES
SLOWEST_BYTES: Final = 100_000  # per second
REPORT_IMAGES: Final = 100  # images between two reports to the error budget

_WHILE_WORTH_IT: Final = retry_if_result(lambda body: body.code in TRIES)

ROW_COLUMNS: Final = ("uri", "size", "etag", "attempts", *MEMBER_COLUMNS)
UNIT_FIELDS: Final = ("generation", "shard")
FETCHED_FIELDS: Final = [
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("data", pa.large_binary()),
]


@dataclass(frozen=True)
class Body:
    """The result of all GETs of an image: bytes, or an error code and a message."""

    data: bytes | None
    code: str | None = None
    message: str | None = None


class Row(NamedTuple):
    """What a manifest row says of an image's GET. archive: `zip` or `tar` for a member."""

    uri: str
    size: int | None
    etag: str | None
    attempts: int
    archive: str | None = None
    offset: int = 0
    length: int = 0
    crc32: int = 0
    fault: str | None = None


def rows_of(manifest: pa.Table) -> list[Row]:
    """The rows of a manifest, also of one that is older than archives."""
    names = [name for name in ROW_COLUMNS if name in manifest.column_names]
    columns = (manifest[name].to_pylist() for name in names)
    return [Row(*values) for values in zip(*columns, strict=True)]


def fault_of(row: Row) -> Body | None:
    """The error of a row that needs no GET; None for all others."""
    if row.fault is not None:
        code, _, message = row.fault.partition(": ")
        return Body(None, code, message)
    if row.archive and (row.size or 0) > LARGEST_MEMBER:
        return Body(None, "too_large", f"the member has {row.size:,} bytes")
    return None


class MemberCheck:
    """Turns the range of an archive into the file of a member, over all tries to fetch it."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._seen: set[bytes] = set()  # digests of bodies with another CRC32
        parted = split_member(row.uri)
        self.archive_uri = parted[0] if parted else row.uri

    def body(self, fetched: Fetched) -> Body:
        row = self._row
        if row.etag and fetched.etag and fetched.etag != row.etag:
            return Body(None, "changed", f"ETag is {fetched.etag}, was {row.etag} when listed")
        try:
            return Body(extract(str(row.archive), fetched.data, row.size or 0, row.crc32))
        except BadMemberError as error:
            if error.code != "unavailable":
                return Body(None, error.code, str(error))
            digest = hashlib.md5(fetched.data, usedforsecurity=False).digest()
            if digest not in self._seen:
                self._seen.add(digest)
                return Body(None, error.code, str(error))
            code = "corrupt" if row.etag else "changed"  # an ETag proves the same archive
            return Body(None, code, f"{error}, the same each time")


def fetch_units(
    units: pa.Table,
    *,
    run: Run,
    source_options: Mapping[str, str],
    progress_actor: ActorHandle,
) -> pa.Table:
    """The manifest rows of each unit with `data`, or `error_code` and `error_message`.

    Raises BudgetExceededError, which ends the job, when the failed images exceed the error budget.
    """
    with refusals_told(progress_actor):
        return pa.concat_tables(
            _fetch_unit(WorkUnit(**row), run, source_options, progress_actor)
            for row in units.to_pylist()
        )


def _fetch_unit(
    unit: WorkUnit, run: Run, source_options: Mapping[str, str], progress_actor: ActorHandle
) -> pa.Table:
    begin(progress_actor, "fetching", unit.key)
    try:
        manifest = run.read_unit(unit)
    except UserError:
        raise
    except Exception as error:
        raise as_lost(error, f"a fetch can't read {run.storage.join(unit.part)}") from error
    assert manifest.num_rows == unit.images, (unit, manifest.num_rows)
    any_suffix = bool(run.info.source.get("any_suffix"))
    bodies = UnitFetch(
        manifest, source_options, progress_actor, unit.key, any_suffix=any_suffix
    ).run()
    return _with_bodies(manifest, unit, bodies)


@dataclass
class UnitFetch:
    """The GETs of one work unit."""

    manifest: pa.Table  # with uri, size, etag
    options: Mapping[str, str]
    progress_actor: ActorHandle | None = None
    shard: str = ""
    retries: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    begun: int = 0  # images that no earlier generation has tried
    failed: list[tuple[str | None, str, str | None]] = field(default_factory=list)  # of `begun`
    bytes: int = 0
    any_suffix: bool = False  # True: the first bytes decide whether a file is an image

    def __post_init__(self) -> None:
        self.gets = Gets(self.options)

    def run(self) -> list[Body]:
        """`bodies`, in a new event loop."""
        return uvloop.run(self.bodies())

    async def bodies(self) -> list[Body]:
        """One body for each row of the manifest, in order. Raises BudgetExceededError."""
        started = time.monotonic()
        gate = asyncio.Semaphore(CONCURRENT_GETS)

        async def fetch(row: Row) -> Body:
            uri, attempts = row.uri, row.attempts
            async with gate:
                self.begun += not attempts
                body = fault_of(row) or await self._image(row)
            if self.any_suffix and body.data and not begins_as_picture(body.data):
                body = Body(None, "not_an_image", no_picture(body.data))
            self.ended += 1
            self.bytes += len(body.data or b"")
            if body.code and not attempts:
                self.failed.append((body.code, without_query(uri), body.message))
            # Also after a success: the error budget needs the number of images, not only failures.
            if self.ended % REPORT_IMAGES == 0:
                await asyncio.to_thread(self._report, started, done=False)
            return body

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fetch(row)) for row in rows_of(self.manifest)]
        self._report(started, done=True)
        return [task.result() for task in tasks]

    def _report(self, started: float, *, done: bool) -> None:
        if self.progress_actor is None:
            return
        # `begun`, not `ended`: failures may end sooner than other images and would count for more.
        report = self.progress_actor.fetched.remote(
            self.shard,
            self.begun,
            failures_of(list(self.failed)),
            size=self.bytes,
            retries=dict(self.retries),
            seconds=time.monotonic() - started,
            done=done,
        )
        if done or self.failed:
            check_budget(report)

    async def _image(self, row: Row) -> Body:
        """The body of one image, after as many tries as TRIES and the time allow."""
        seconds = IMAGE_SECONDS + (row.size or 0) / SLOWEST_BYTES
        md5_check = Md5Check(row.uri)
        member_check = MemberCheck(row) if row.archive else None
        code_counts: Counter[str] = Counter()

        async def once() -> Body:
            try:
                async with asyncio.timeout_at(deadline):
                    if md5_check.must_ask:  # after a body whose MD5 is not its ETag: rare
                        md5_check.encrypted = await self.gets.is_encrypted(row.uri)
                    if member_check:
                        fetched = await self.gets.get_range(
                            member_check.archive_uri, row.offset, row.length, row.etag
                        )
                    else:
                        fetched = await self.gets.get(row.uri)
            # Whatever the client raises for one object is that image's error row: there are as
            # many exception types as there are storage back ends.
            except Exception as error:  # noqa: BLE001
                body = Body(None, *classify(error))
            else:
                if member_check:
                    body = member_check.body(fetched)
                else:
                    failure = fault(fetched, row.size, row.etag, md5_check)
                    body = Body(None, *failure) if failure else Body(fetched.data)
            if body.code:
                code_counts[body.code] += 1
            return body

        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        tried = [await once()]
        if tried[0].code not in TRIES:  # nearly always, and tenacity costs as much as MD5
            return tried[0]

        async def next_try() -> Body:
            return tried.pop() if tried else await once()

        out_of_time = stop_before_delay(deadline - loop.time())

        def is_enough(state: RetryCallState) -> bool:
            code = str(_body_of(state).code)
            return code_counts[code] >= TRIES[code] or out_of_time(state)

        return await AsyncRetrying(
            stop=is_enough,
            wait=BACKOFF,
            retry=_WHILE_WORTH_IT,
            before_sleep=self._count_retry,
            retry_error_callback=_tried_in_vain,
        )(next_try)

    def _count_retry(self, state: RetryCallState) -> None:
        self.retries[str(_body_of(state).code)] += 1


def _body_of(state: RetryCallState) -> Body:
    assert state.outcome is not None, "an attempt has ended"
    return state.outcome.result()


def _tried_in_vain(state: RetryCallState) -> Body:
    body = _body_of(state)
    return replace(body, message=f"{body.message} (tried {state.attempt_number} times)")


def _with_bodies(manifest: pa.Table, unit: WorkUnit, bodies: list[Body]) -> pa.Table:
    table = manifest
    for name in UNIT_FIELDS:
        column = pa.repeat(pa.scalar(getattr(unit, name), pa.int32()), len(bodies))
        table = table.append_column(name, column)
    for spec, name in zip(FETCHED_FIELDS, ("code", "message", "data"), strict=True):
        column = pa.array([getattr(body, name) for body in bodies], spec.type)
        table = table.append_column(spec, column)
    return table
