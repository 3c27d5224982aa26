"""The end of a generation: count, snapshot, judge the error rate, move `latest.json`, `_SUCCESS`.

In this order, each step one atomic object, so a kill between any two leaves readers on the old
snapshot and the next call finishes the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Final

from pipeline.budget import Failures, failures_of, merged, over_budget
from pipeline.errors import ErrorBudgetError, UserError
from pipeline.plan import Generation
from pipeline.run import Run, ShardEntry, Snapshot
from pipeline.schema import TRANSIENT_CODES
from pipeline.shards import ERROR_COLUMNS, read_footer
from pipeline.tally import Progress

FOOTER_THREADS: Final = 32


def finish(
    run: Run,
    generation: Generation,
    sizes: Mapping[str, int],
    max_error_rate: float,
    *,
    publish: bool = True,
) -> Snapshot:
    """Make and publish the snapshot of a generation whose objects are all there.

    sizes: bytes of every shard object of the run; publish: False leaves readers where they are, for
    whoever looks at the snapshot first. A snapshot that was rolled back stays so.

    Raises ErrorBudgetError if too many images failed: the snapshot is then there for `retry` and
    `errors`, but not published.
    """
    snapshot = _snapshot(run, generation, sizes)
    failed = failures(run, snapshot)
    reason = over_budget(snapshot.rows, failed, max_error_rate)
    if reason is not None:
        url = run.storage.url
        again = f"`panoptic retry {url}`, or " if TRANSIENT_CODES & failed.keys() else ""
        enough = math.ceil(1000 * snapshot.error / snapshot.rows) / 1000
        raise ErrorBudgetError(
            f"{reason}; every shard is written but nothing is published: see `panoptic errors "
            f"{url}`, then {again}mend the source and --refresh, or run again with "
            f"--max-error-rate {enough:g}"
        )
    if publish:
        pointer = run.pointer() or {}
        if snapshot.number not in (pointer.get("snapshot"), *pointer.get("withdrawn", ())):
            run.publish(snapshot.number)
        run.mark_success(True)
    return snapshot


def _snapshot(run: Run, generation: Generation, sizes: Mapping[str, int]) -> Snapshot:
    known: dict[str, ShardEntry] = {}
    expected = generation.images
    if generation.base is not None:
        base = run.snapshot(generation.base)
        expected += base.rows - generation.dropped
        leaving = {*generation.gone, *(rewrite.source for rewrite in generation.rewrites)}
        known = {entry.path: entry for entry in base.shards if entry.path not in leaving}
    paths = [
        *known,
        *(rewrite.path for rewrite in generation.rewrites),
        *(unit.path for unit in generation.units()),
    ]
    if generation.number in run.snapshot_numbers():
        known = {entry.path: entry for entry in run.snapshot(generation.number).shards}
    # A shard of which nothing is known yet, or that was made again since, is asked itself.
    fresh = [p for p in paths if p not in known or known[p].bytes != sizes.get(p)]
    entries = {**known, **{entry.path: entry for entry in footers(run, fresh, sizes)}}
    rows = sum(entries[path].rows for path in paths)
    if rows != expected:
        raise UserError(
            f"{run.storage.url}: the shards of generation {generation.number} hold {rows} rows "
            f"where {expected} images are planned: a shard was replaced by hand; delete it and run "
            "again"
        )
    if fresh or set(known) != set(paths):
        return run.write_snapshot(generation.number, [entries[path] for path in paths])
    return run.snapshot(generation.number)


def footers(run: Run, paths: Iterable[str], sizes: Mapping[str, int]) -> list[ShardEntry]:
    """What shards say of themselves, many at a time. Raises UserError naming a broken one."""

    def read(path: str) -> ShardEntry:
        try:
            return read_footer(run.storage, path, sizes[path])
        except (OSError, ValueError) as error:  # pyarrow's errors are both
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


def record_stats(run: Run, generation: int, progress: Progress, facts: dict[str, Any]) -> None:
    """Add one call's work to `stats/000G.json`, a list with an entry a call."""
    if not progress.total:
        return  # stopped before anything was seen
    path = stats_path(generation)
    entries = read_stats(run, generation)
    run.storage.write(path, json.dumps([*entries, {**facts, **asdict(progress)}]).encode())


def read_stats(run: Run, generation: int) -> list[dict[str, Any]]:
    try:
        return json.loads(run.storage.read(stats_path(generation)))
    except FileNotFoundError:
        return []


def stats_path(generation: int) -> str:
    return f"stats/{generation:04d}.json"
