"""Work unit -> the bytes of its images, or for each image that can't be had the reason.

A task reads its own slice of the manifest and fetches its images concurrently, one GET an image
and no HEAD. A body counts only if it is the object that was listed: its length, its ETag and,
where the ETag is one, its MD5. Anything else is fetched again, with backoff and jitter, and then
reported: never segmented. Blocks carry encoded bytes, a tenth of the pixels.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

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
from pipeline.secrets import without_query
from pipeline.segmentation.integrity import Md5Check, fault
from pipeline.sharding import WorkUnit
from pipeline.storage.entry import Fetched, as_lost, classify
from pipeline.storage.objects import Gets

CONCURRENT_GETS: Final = 64
# What another try may mend, and how often it is met at most; everything else is an answer. Where
# half of all tries fail, 30 leave one image of a billion; their waits take a minute, two at most.
# An object that was replaced stays so, unless a cache on the way still had the other.
TRIES: Final = {"unavailable": 30, "timeout": 30, "changed": 3}
# Seconds drawn between 0 and a bound that doubles with each try, from 0.1 to 5.
BACKOFF: Final = wait_random_exponential(multiplier=0.1, max=5.0)
IMAGE_SECONDS: Final = 180.0  # over all tries of one image...
SLOWEST_BYTES: Final = 100_000  # ...and a second more for each so many bytes
REPORT_IMAGES: Final = 100  # the budget is told after so many, not only at a unit's end

_WHILE_WORTH_IT: Final = retry_if_result(lambda body: body.code in TRIES)

UNIT_FIELDS: Final = ("generation", "shard")
FETCHED_FIELDS: Final = [
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("data", pa.large_binary()),
]


@dataclass(frozen=True)
class Body:
    """What an image's GETs ended in: bytes, or an error code and a message."""

    data: bytes | None
    code: str | None = None
    message: str | None = None


def fetch_units(
    units: pa.Table,
    *,
    run: Run,
    source_options: Mapping[str, str],
    progress_actor: ActorHandle,
) -> pa.Table:
    """The manifest rows of each unit with `data`, or `error_code` and `error_message`.

    Raises BudgetExceededError, which ends the job, once too large a part of the images failed.
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
    begun: int = 0  # of those that no earlier generation has tried
    failed: list[tuple[str | None, str, str | None]] = field(default_factory=list)  # of these, too
    bytes: int = 0
    any_suffix: bool = False  # then the first bytes say whether a file is a picture

    def __post_init__(self) -> None:
        self.gets = Gets(self.options)

    def run(self) -> list[Body]:
        """`bodies` in an event loop of its own."""
        return uvloop.run(self.bodies())

    async def bodies(self) -> list[Body]:
        """One for each row, in order. Raises BudgetExceededError."""
        started = time.monotonic()
        gate = asyncio.Semaphore(CONCURRENT_GETS)

        async def fetch(uri: str, size: int | None, etag: str | None, attempts: int) -> Body:
            async with gate:
                self.begun += not attempts
                body = await self._image(uri, size, etag)
            if self.any_suffix and body.data and not begins_as_picture(body.data):
                body = Body(None, "not_an_image", no_picture(body.data))
            self.ended += 1
            self.bytes += len(body.data or b"")
            if body.code and not attempts:
                self.failed.append((body.code, without_query(uri), body.message))
            # Whether or not this image failed: units that report only failures look worse than all.
            if self.ended % REPORT_IMAGES == 0:
                await asyncio.to_thread(self._report, started, done=False)
            return body

        columns = (self.manifest[name].to_pylist() for name in ("uri", "size", "etag", "attempts"))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fetch(*row)) for row in zip(*columns, strict=True)]
        self._report(started, done=True)
        return [task.result() for task in tasks]

    def _report(self, started: float, *, done: bool) -> None:
        if self.progress_actor is None:
            return
        # Begun, not ended: failures may end sooner than the rest and would look like more.
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

    async def _image(self, uri: str, size: int | None, etag: str | None) -> Body:
        """One image, tried again while that may help and time is left."""
        seconds = IMAGE_SECONDS + (size or 0) / SLOWEST_BYTES
        md5_check = Md5Check(uri)
        met: Counter[str] = Counter()  # error codes

        async def once() -> Body:
            try:
                async with asyncio.timeout_at(deadline):
                    if md5_check.must_ask:  # after a body that its ETag disagreed with: rare
                        md5_check.encrypted = await self.gets.is_encrypted(uri)
                    fetched = await self.gets.get(uri)
            # Whatever the client raises for one object is that image's error row: there are as
            # many exception types as there are storage back ends.
            except Exception as error:  # noqa: BLE001
                body = Body(None, *classify(error))
            else:
                body = check_body(fetched, size, etag, md5_check)
            if body.code:
                met[body.code] += 1
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
            return met[code] >= TRIES[code] or out_of_time(state)

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


def check_body(
    fetched: Fetched, size: int | None, etag: str | None, md5_check: Md5Check | None = None
) -> Body:
    """A body that is not the object that was listed is an error, never segmented."""
    found = fault(fetched, size, etag, md5_check)
    return Body(fetched.data) if found is None else Body(None, *found)


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
    for spec, column in zip(FETCHED_FIELDS, values, strict=True):
        table = table.append_column(spec, pa.array(column, spec.type))
    return table
