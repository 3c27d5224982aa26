"""Where things lie in a run folder: names of its objects, relative to it."""

from __future__ import annotations

RUN_FILE = "run.json"
LATEST_FILE = "latest.json"
BASELINE_FILE = "baseline.json"  # of a folder of nights
SUCCESS_FILE = "_SUCCESS"
REMOVED_FILE = "removed"  # while a prune removes the whole run


def snapshot_path(number: int) -> str:
    return f"snapshots/{number:04d}.parquet"


def part_name(shard: str) -> str:
    """`segments/0001/shard-a-of-b.parquet` -> `0001-shard-a-of-b.parquet`."""
    return "-".join(shard.split("/")[1:])


def stats_path(generation: int) -> str:
    return f"stats/{generation:04d}.json"
