"""The end of a generation: snapshot, check of the error rate, `latest.json`, `_SUCCESS`.

The steps have this order and write one atomic object each. If the process is killed between two
steps, readers see the old snapshot, and the next call takes the remaining steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pipeline.error_budget import Failures, enough_rate, merged, over_budget
from pipeline.errors import ErrorBudgetError, UserError
from pipeline.run.folder import ShardEntry, Snapshot
from pipeline.run.latest import forward
from pipeline.run.run import Run
from pipeline.run.shard_format import ERROR_COLUMNS, failures_in, read_footer
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
    """Write and publish the snapshot of a generation whose shards are all written.

    sizes: of every shard object of the run (`RunFolder.present`); publish: False leaves publishing
    to the caller. A snapshot that was rolled back is not published again.

    Raises ErrorBudgetError if too many images failed: the snapshot is then written, for `retry` and
    `errors`, but not published; UserError if shards don't hold the planned rows.
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
    """`latest.json` after publishing snapshot `number`; unchanged if it was rolled back."""
    if pointer is not None and number in pointer.get("withdrawn", ()):
        return pointer
    return forward(pointer, "snapshot", number)


def _snapshot(run: Run, generation: Generation, sizes: Mapping[str, int]) -> Snapshot:
    known, expected = shards_of(run, generation)
    planned = {unit.path: unit.images for unit in generation.units()}
    planned |= {rewrite.path: rewrite.rows for rewrite in generation.rewrites}
    # Read the footers of shards that no snapshot lists yet, or that were written again since.
    fresh = [path for path, e in known.items() if e is None or e.bytes != sizes.get(path)]
    read = {entry.path: entry for entry in footers(run, fresh, sizes)}
    entries = [entry for entry in ({**known, **read}).values() if entry is not None]
    rows = sum(entry.rows for entry in entries)
    wrong = [path for path, entry in read.items() if entry.rows != planned.get(path, entry.rows)]
    if wrong or rows != expected:
        raise UserError(
            f"{run.storage.url}: the shards of generation {generation.number} hold {rows} rows "
            f"where {expected} images are planned: a shard was replaced by hand; delete it and run "
            "again"
        )
    if fresh or generation.number not in run.snapshot_numbers():
        return run.write_snapshot(generation.number, entries)
    return run.snapshot(generation.number)


def shards_of(run: Run, generation: Generation) -> tuple[dict[str, ShardEntry | None], int]:
    """The shards of a generation's snapshot, by path, and the sum of their rows.

    An entry is None for a shard that this generation writes. If the snapshot exists, the entries
    are the snapshot's, since the base may be pruned by then.
    """
    if generation.number in run.snapshot_numbers():
        snapshot = run.snapshot(generation.number)
        return {entry.path: entry for entry in snapshot.shards}, snapshot.rows
    kept: dict[str, ShardEntry | None] = {}
    rows = generation.images
    if generation.base is not None:
        base = run.snapshot(generation.base)
        leaving = {*generation.gone, *(rewrite.source for rewrite in generation.rewrites)}
        kept = {entry.path: entry for entry in base.shards if entry.path not in leaving}
        rows += base.rows - generation.dropped
    written = [shard.path for shard in (*generation.rewrites, *generation.units())]
    return {**kept, **dict.fromkeys(written)}, rows


def footers(run: Run, paths: Iterable[str], sizes: Mapping[str, int]) -> list[ShardEntry]:
    """The entries of shards from their footers, read in threads, in the order of `paths`.

    sizes: bytes by path. Raises UserError naming a broken shard.
    """

    def read(path: str) -> ShardEntry:
        try:
            return read_footer(run.storage, path, sizes[path])
        except (OSError, ValueError) as error:  # pyarrow's errors are both
            if of_client(error) and not isinstance(error, FileNotFoundError):
                raise  # the store failed, not the shard
            raise UserError(
                f"shard {path} of {run.storage.url} is broken ({error}): delete it and run again"
            ) from error

    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(read, paths))


def failures(run: Run, snapshot: Snapshot) -> dict[str, Failures]:
    """The failed images of a snapshot by error code; reads only shards that have errors."""
    by_code: dict[str, Failures] = {}
    for entry in snapshot.shards:
        if entry.error:
            by_code = merged(by_code, failures_in(run.read_shard(entry.path, ERROR_COLUMNS)))
    return by_code
