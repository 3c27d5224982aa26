"""The end of a generation: count, snapshot, judge the error rate, move `latest.json`, `_SUCCESS`.

In this order, each step one atomic object, so a kill between any two leaves readers on the old
snapshot and the next call finishes the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pipeline.error_budget import Failures, enough_rate, failures_of, merged, over_budget
from pipeline.errors import ErrorBudgetError, UserError
from pipeline.run.folder import ShardEntry, Snapshot
from pipeline.run.latest import forward
from pipeline.run.run import Run
from pipeline.run.shard_format import ERROR_COLUMNS, read_footer
from pipeline.schema import TRANSIENT_CODES
from pipeline.sharding import Generation
from pipeline.storage.entry import of_client

FOOTER_THREADS: Final = 32


def finish_generation(
    run: Run,
    generation: Generation,
    sizes: Mapping[str, int],
    max_error_rate: float,
    *,
    publish: bool = True,
) -> Snapshot:
    """Make and publish the snapshot of a generation whose objects are all there.

    sizes: bytes of every shard object of the run; publish: False only makes it, for whoever judges
    it and publishes it then. A snapshot that was rolled back stays so.

    Raises ErrorBudgetError if too many images failed: the snapshot is then there for `retry` and
    `errors`, but not published.
    """
    snapshot = _snapshot(run, generation, sizes)
    if not publish:
        return snapshot
    failed = failures(run, snapshot)
    reason = over_budget(snapshot.rows, failed, max_error_rate)
    if reason is not None:
        url = run.storage.url
        again = f"`panoptic retry {url}`, or " if TRANSIENT_CODES & failed.keys() else ""
        enough = enough_rate(snapshot.rows, snapshot.error)
        raise ErrorBudgetError(
            f"{reason}; every shard is written but nothing is published: see `panoptic errors "
            f"{url}`, then {again}mend the source and --refresh, or run again with "
            f"--max-error-rate {enough:g}"
        )
    run.move(lambda pointer: _shown(pointer, snapshot.number))
    run.mark_success(True)
    return snapshot


def _shown(pointer: dict[str, Any] | None, number: int) -> dict[str, Any]:
    """The pointer at this snapshot; as it was if that was rolled back."""
    if pointer is not None and number in pointer.get("withdrawn", ()):
        return pointer
    return forward(pointer, "snapshot", number)


def _snapshot(run: Run, generation: Generation, sizes: Mapping[str, int]) -> Snapshot:
    known, expected = shards_of(run, generation)
    planned = {unit.path: unit.images for unit in generation.units()}
    planned |= {rewrite.path: rewrite.rows for rewrite in generation.rewrites}
    # A shard of which nothing is known yet, or that was made again since, is asked itself.
    fresh = [path for path, own in known.items() if own is None or own.bytes != sizes.get(path)]
    asked = {entry.path: entry for entry in footers(run, fresh, sizes)}
    entries = [entry for entry in ({**known, **asked}).values() if entry is not None]
    rows = sum(entry.rows for entry in entries)
    other = [path for path, entry in asked.items() if entry.rows != planned.get(path, entry.rows)]
    if other or rows != expected:
        raise UserError(
            f"{run.storage.url}: the shards of generation {generation.number} hold {rows} rows "
            f"where {expected} images are planned: a shard was replaced by hand; delete it and run "
            "again"
        )
    if fresh or generation.number not in run.snapshot_numbers():
        return run.write_snapshot(generation.number, entries)
    return run.snapshot(generation.number)


def shards_of(run: Run, generation: Generation) -> tuple[dict[str, ShardEntry | None], int]:
    """The shards of a generation's snapshot, by path, with what is known of each; and their rows.

    Taken from its own snapshot once it has one: what it was made from may be pruned by then.
    """
    if generation.number in run.snapshot_numbers():
        made = run.snapshot(generation.number)
        return {entry.path: entry for entry in made.shards}, made.rows
    kept: dict[str, ShardEntry | None] = {}
    rows = generation.images
    if generation.base is not None:
        base = run.snapshot(generation.base)
        leaving = {*generation.gone, *(rewrite.source for rewrite in generation.rewrites)}
        kept = {entry.path: entry for entry in base.shards if entry.path not in leaving}
        rows += base.rows - generation.dropped
    own = [each.path for each in (*generation.rewrites, *generation.units())]
    return {**kept, **dict.fromkeys(own)}, rows


def footers(run: Run, paths: Iterable[str], sizes: Mapping[str, int]) -> list[ShardEntry]:
    """What shards say of themselves, many at a time. Raises UserError naming a broken one."""

    def read(path: str) -> ShardEntry:
        try:
            return read_footer(run.storage, path, sizes[path])
        except (OSError, ValueError) as error:  # pyarrow's errors are both
            if of_client(error) and not isinstance(error, FileNotFoundError):
                raise  # the store failed, and says nothing of the shard
            raise UserError(
                f"shard {path} of {run.storage.url} is broken ({error}): delete it and run again"
            ) from error

    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(read, paths))


def failures(run: Run, snapshot: Snapshot) -> dict[str, Failures]:
    """Failed images by code, over a snapshot; reads only shards that have errors."""
    found: dict[str, Failures] = {}
    for entry in snapshot.shards:
        if entry.error:
            table = run.read_shard(entry.path, list(ERROR_COLUMNS))
            columns = (table[name].to_pylist() for name in ERROR_COLUMNS)
            found = merged(found, failures_of(zip(*columns, strict=True)))
    return found


def shard_sizes(run: Run) -> dict[str, int]:
    """Bytes of every shard object of the run."""
    return {entry.path: entry.size for entry in run.storage.list("segments")}
