"""What a night's plan costs on a large run: a few new images beside tens of millions of old ones.

    python benchmarks/nightly_plan.py --rows 30000000 --new 10000 --changed 20

Makes a run folder whose manifest and snapshot are real and whose shards are only named, lists a
source of the same images with some new and some changed, and plans the next generation as a night
does. Reported: shards to compute, the part of the bytes that is rewritten, seconds, and the
driver's peak memory, which must not grow with the number of images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.made_rows import loose_rows, made_info
from benchmarks.measure import peak_mb, print_result
from pipeline.planning.generations import Brakes, plan_refresh
from pipeline.planning.manifest import write_parts
from pipeline.planning.source import Source
from pipeline.run.folder import ShardEntry
from pipeline.run.run import Run, create_run
from pipeline.schema import TRANSIENT_CODES
from pipeline.sharding import Generation, shard_count
from pipeline.storage.storage import Storage

CHUNK = 500_000
BYTES_OF_AN_IMAGE = 150_000  # encoded
BYTES_OF_A_ROW = 3_550  # in a shard
WHEN = datetime(2026, 11, 1, tzinfo=UTC)


def rows(numbers: np.ndarray, of: int, every: int = 0) -> pa.Table:
    """Images by number, their hashes evenly spread, so that they come sorted; with `every` those
    of each so-manieth number have another ETag.

    A hash that is not the name's own plans alike: only its place in the order is used.
    """
    count = len(numbers)
    names = pc.binary_join_element_wise(pa.array(numbers).cast(pa.string()), "jpg", ".")  # type: ignore[attr-defined]
    uris = pc.binary_join_element_wise(pa.scalar("s3://bucket/photos"), names, "/")  # type: ignore[attr-defined]
    marks = np.where(numbers % np.uint64(every) == 0, "2", "1") if every else np.full(count, "1")
    return loose_rows(
        {
            "hash": numbers * np.uint64(((1 << 64) - 1) // of) + np.uint64(7),
            "file_name": names,
            "uri": uris,
            "size": np.full(count, BYTES_OF_AN_IMAGE),
            "etag": pc.binary_join_element_wise(names, pa.array(marks), "-"),  # type: ignore[attr-defined]
            "last_modified": pa.repeat(pa.scalar(WHEN, pa.timestamp("us", "UTC")), count),
            "attempts": np.zeros(count, np.int32),
        }
    )


def chunks(count: int, of: int, every: int = 0, first: int = 0) -> Iterator[pa.Table]:
    for start in range(first, first + count, CHUNK):
        stop = min(start + CHUNK, first + count)
        yield rows(np.arange(start, stop, dtype=np.uint64), of, every)


@dataclass(frozen=True)
class MadeSource(Source):
    """A listing of `old` images of which `changed` have another ETag, and `new` ones more."""

    old: int = field(default=0, kw_only=True)
    new: int = field(default=0, kw_only=True)
    changed: int = field(default=0, kw_only=True)

    def tables(self, progress: Callable[[int], None] = lambda count: None) -> Iterator[pa.Table]:
        every = -(-self.old // self.changed) if self.changed else 0
        yield from chunks(self.old, self.old, every)
        yield from chunks(self.new, self.old + self.new, first=self.old)


def make_run(folder: Path, count: int) -> Run:
    """A finished generation 1 of `count` images; its shards exist by name alone."""
    run = create_run(Storage(folder), made_info())
    shards = shard_count(count, count * BYTES_OF_AN_IMAGE)
    written = write_parts(run.storage, 1, shards, chunks(count, count))
    generation = Generation(1, "first", written, count * BYTES_OF_AN_IMAGE, counts={"new": count})
    run.write_generation(generation)
    entries = [
        ShardEntry(unit.path, unit.images, unit.images, 0, unit.images * BYTES_OF_A_ROW)
        for unit in generation.units()
    ]
    run.write_snapshot(1, entries)
    run.publish(1)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--new", type=int, default=10_000)
    parser.add_argument("--changed", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="panoptic-") as folder:
        began = time.monotonic()
        run = make_run(Path(folder) / "run", arguments.rows)
        made = time.monotonic() - began
        before = peak_mb()
        source = MadeSource(
            "made", old=arguments.rows, new=arguments.new, changed=arguments.changed
        )
        began = time.monotonic()
        generation = plan_refresh(
            run,
            source,
            None,
            images_per_shard=512,
            brakes=Brakes(0.1, 0.5, tuple(sorted(TRANSIENT_CODES)), 3),
            progress=lambda count: None,
        )
        seconds = time.monotonic() - began
        assert generation is not None
        live = {entry.path: entry.bytes for entry in run.snapshot(1).shards}
    rewritten = sum(live[rewrite.source] for rewrite in generation.rewrites)
    facts = {
        "rows": arguments.rows,
        "new": arguments.new,
        "changed": arguments.changed,
        "images_to_compute": generation.images,
        "shards_to_compute": generation.shards,
        "live_shards": len(live),
        "shards_rewritten": len(generation.rewrites),
        "bytes_rewritten": rewritten,
        "part_rewritten": rewritten / sum(live.values()),
        "seconds": round(seconds, 1),
        "peak_rss_mb": round(peak_mb()),
        "rss_before_mb": round(before),
        "seconds_to_make": round(made, 1),
    }
    print(f"{arguments.rows:,} images live in {len(live):,} shards; {arguments.new:,} new")
    print(f"  to compute      {generation.images:,} images in {generation.shards:,} shards")
    print(
        f"  to rewrite      {len(generation.rewrites):,} shards, "
        f"{100 * facts['part_rewritten']:.3f} % of the bytes"
    )
    print(f"  planned in      {seconds:.0f} s, peak memory {facts['peak_rss_mb']:,} MB")
    print_result("nightly_plan", **facts)


if __name__ == "__main__":
    main()
