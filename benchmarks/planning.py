"""A manifest of ten million images, planned and compared, on one driver.

    python benchmarks/planning.py [--images 10000000]

The claims: the manifest and its plan of 20,000 shards are done within 5 minutes and 2 GB of memory;
the difference to a listing in which 1,000 images changed names exactly those. Both are what
`segment` and `segment --refresh` do before they start Ray; rows are made, not listed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.made_rows import made_info, made_rows
from benchmarks.measure import peak_mb, print_result
from pipeline.planning.generations import Brakes, plan_first, plan_refresh, stage_listing
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source
from pipeline.run.folder import ShardEntry
from pipeline.run.run import create_run
from pipeline.storage.storage import Storage

PER_SHARD = 500
CHANGES = 1_000
LIMIT_SECONDS, LIMIT_MB = 300, 2_000


@dataclass(frozen=True)
class MadeSource(Source):
    """A listing of made rows; every n-th image has another ETag than before."""

    count: int = field(default=0, kw_only=True)
    changed_every: int = field(default=0, kw_only=True)

    def tables(self, progress: Callable[[int], None] = lambda count: None) -> Iterator[pa.Table]:
        first = 0
        for table in made_rows(self.count):
            if self.changed_every:
                rows = range(first, first + table.num_rows)
                etags = ["1" * 32 if row % self.changed_every == 0 else "0" * 32 for row in rows]
                place = table.schema.get_field_index("etag")
                table = table.set_column(place, table.schema.field(place), pa.array(etags))
            first += table.num_rows
            progress(first)
            yield table

    def names(self) -> set[str]:
        """The images that differ."""
        return {f"folder/{n:09d}.jpg" for n in range(0, self.count, self.changed_every)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000_000)
    images = parser.parse_args().images
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="planning-") as folder:
        run = create_run(Storage(f"{folder}/run"), made_info())
        start = time.monotonic()
        source = MadeSource("s3://made", count=images)
        with Staging() as staging:
            found, size = stage_listing(staging, source, None, lambda count: None)
            times["list"] = time.monotonic() - start
            generation = plan_first(run, staging, found, size, PER_SHARD)
        times["plan"] = time.monotonic() - start - times["list"]
        first_mb = peak_mb()
        entries = [ShardEntry(u.path, u.images, u.images, 0, 1) for u in generation.units()]
        run.write_snapshot(1, entries)
        start = time.monotonic()
        changed = MadeSource("s3://made", count=images, changed_every=images // CHANGES)
        second = plan_refresh(
            run,
            changed,
            None,
            images_per_shard=PER_SHARD,
            brakes=Brakes(0.1),
            progress=lambda count: None,
        )
        times["difference"] = time.monotonic() - start
        assert second is not None
        parts = [pq.read_table(f"{folder}/run/{part}") for part in second.parts()]
        names = set(pa.concat_tables(parts)["file_name"].to_pylist())
        dropped = pq.read_table(f"{folder}/run/{second.dropped_path}")
        exact = names == changed.names() == set(dropped["file_name"].to_pylist())
        rewritten = sum(rewrite.rows for rewrite in second.rewrites)
    total = times["list"] + times["plan"]
    for name, seconds in times.items():
        print(f"{name:12}{seconds:8.1f} s")
    print(f"manifest and plan of {generation.shards} shards {total:.1f} s, limit {LIMIT_SECONDS}")
    print(f"peak memory {first_mb:.0f} MB, with the difference {peak_mb():.0f}, limit {LIMIT_MB}")
    print(f"difference: {len(names)} images, exactly those that changed: {exact}")
    print_result(
        "planning",
        images=images,
        shards=generation.shards,
        seconds={name: round(value, 1) for name, value in times.items()},
        peak_mb=round(peak_mb()),
        changed=len(names),
        rewritten_shards=len(second.rewrites),
        rewritten_rows=rewritten,
        exact=exact,
        holds=exact and total <= LIMIT_SECONDS and peak_mb() <= LIMIT_MB,
    )


if __name__ == "__main__":
    main()
