"""`panoptic verify`: the check that a snapshot holds each image of the manifest exactly once.

The names and the footer of each live shard are read, and DuckDB joins the names with the manifest
on disk, so memory does not grow with the run. Counts and hashes in the run folder are checked and
not relied on: the check is independent of the code that plans and publishes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.layout import SEGMENTS
from pipeline.planning.manifest import stage_manifest
from pipeline.planning.scratch_db import Staging
from pipeline.run.folder import ShardEntry, Snapshot
from pipeline.run.run import Run
from pipeline.schema import ERROR_CODES
from pipeline.sharding import name_hash
from pipeline.storage.entry import of_client

READ_THREADS: Final = 16
SHOWN: Final = 20  # examples per kind of finding; all findings are counted
COLUMNS: Final = ("file_name", "uri", "etag", "status", "error_code")


@dataclass
class Verification:
    """The counts of a snapshot, and the findings: empty if all is right."""

    snapshot: int
    shards: int
    images: int  # of the manifest
    rows: int
    ok: int
    error: int
    findings: dict[str, int] = field(default_factory=dict)  # number by kind
    examples: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.findings

    def found(self, kind: str, what: str) -> None:
        self.findings[kind] = self.findings.get(kind, 0) + 1
        if self.findings[kind] <= SHOWN:
            self.examples.append(f"{kind}: {what}")


def verify(run: Run, number: int | None = None) -> Verification:
    """Check the rows of snapshot `number`, by default of the published one.

    A snapshot is right if each image of the manifest has exactly one row, with its URI and ETag; if
    there are no other rows; if rows are sorted by hash; and if footers, snapshot and the listing of
    the store agree on each shard. Raises UserError without such a snapshot.
    """
    snapshot = run.snapshot(number)
    sizes = {entry.path: entry.size for entry in run.storage.list(SEGMENTS)}
    result = Verification(snapshot.number, len(snapshot.shards), 0, 0, 0, 0)
    with Staging() as staging:
        result.rows = staging.stage("found", _live(run, snapshot, sizes, result))
        result.images = stage_manifest(staging, "manifest", run, upto=snapshot.number)
        if not result.rows:
            if result.images:
                result.findings["missing"] = result.images
            return result
        for kind, query in _QUERIES.items():
            count = staging.count(f"select count(*) from ({query})")
            if count == 0:
                continue
            result.findings[kind] = count
            rows = staging.connection.execute(f"{query} limit {SHOWN}").fetchall()
            result.examples += [f"{kind}: {': '.join(map(str, row))}" for row in rows]
    return result


# The SQL query for each kind of finding: file names, and shards or URIs.
_QUERIES: Final = {
    "twice": """
        select file_name, string_agg(shard, ', ') from found
        group by file_name having count(*) > 1""",
    "missing": "select file_name, uri from manifest anti join found using (file_name)",
    "not in the manifest": """
        select file_name, shard from found anti join manifest using (file_name)""",
    "another image": """
        select file_name, shard, found.uri from found join manifest using (file_name)
        where found.uri not in (manifest.uri, split_part(manifest.uri, '?', 1))
            or found.etag is distinct from manifest.etag""",
}


def _live(
    run: Run, snapshot: Snapshot, sizes: Mapping[str, int], result: Verification
) -> Iterator[pa.Table]:
    """The names of each readable live shard as tables; faults of shards go to `result`."""

    def read(entry: ShardEntry) -> tuple[ShardEntry, pa.Table | None, Mapping[bytes, bytes], str]:
        try:
            with run.storage.open(entry.path) as file:
                shard = pq.ParquetFile(file)
                rows = shard.read(columns=list(COLUMNS), use_threads=False)
                return entry, rows, shard.metadata.metadata or {}, ""
        except FileNotFoundError:
            return entry, None, {}, "is missing"
        except (OSError, ValueError) as error:  # pyarrow raises both
            if of_client(error):  # the store failed: no finding on the shard
                raise
            return entry, None, {}, f"can't be read: {error}"

    with ThreadPoolExecutor(READ_THREADS) as pool:
        # In groups, so that memory does not grow with the number of shards.
        group_size = 4 * READ_THREADS
        for first in range(0, len(snapshot.shards), group_size):
            group = snapshot.shards[first : first + group_size]
            for entry, table, metadata, problem in pool.map(read, group):
                if table is None:
                    result.found("broken shard", f"{entry.path} {problem}")
                    continue
                for words in _inconsistent(run, entry, table, metadata, sizes.get(entry.path)):
                    result.found("inconsistent shard", f"{entry.path} {words}")
                errors = table.num_rows - table["error_code"].null_count
                result.ok += table.num_rows - errors
                result.error += errors
                named = table.select(["file_name", "uri", "etag"])
                yield named.append_column("shard", pa.array([entry.path] * table.num_rows))


def _inconsistent(
    run: Run,
    entry: ShardEntry,
    table: pa.Table,
    metadata: Mapping[bytes, bytes],
    size: int | None,
) -> Iterator[str]:
    """The differences between the rows and footer of a shard, the snapshot and the listing."""
    failed = pc.is_valid(table["error_code"])  # type: ignore[attr-defined]
    errors = int(pc.sum(failed).as_py() or 0)  # type: ignore[attr-defined]
    facts: dict[str, tuple[Any, Any]] = {
        "rows in the snapshot": (entry.rows, table.num_rows),
        "errors in the snapshot": (entry.error, errors),
        "ok in the snapshot": (entry.ok, table.num_rows - errors),
        "bytes in the snapshot": (entry.bytes, size),
        "ok in its footer": (metadata.get(b"panoptic.ok"), b"%d" % (table.num_rows - errors)),
        "errors in its footer": (metadata.get(b"panoptic.error"), b"%d" % errors),
        "fingerprint": (metadata.get(b"panoptic.fingerprint"), run.info.fingerprint.encode()),
        "weights": (metadata.get(b"panoptic.weights_sha256"), run.info.weights_sha256.encode()),
    }
    for what, (recorded, counted) in facts.items():
        if recorded != counted:
            yield f"{what}: {_text(recorded)}, but there is {_text(counted)}"
    hashes = np.array([name_hash(name) for name in table["file_name"].to_pylist()], np.uint64)
    if np.any(hashes[:-1] > hashes[1:]):
        yield "rows are not sorted by hash"
    codes = table["error_code"].to_pylist()
    states = table["status"].to_pylist()
    if any((state == "ok") != (code is None) for state, code in zip(states, codes, strict=True)):
        yield "status and error_code disagree"
    unknown = set(codes) - ERROR_CODES - {None}
    if unknown:
        yield f"error codes {', '.join(sorted(unknown))} are unknown"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
