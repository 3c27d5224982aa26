"""Reading a run folder in tests with pyarrow alone, independent of the project's readers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def live_rows(out: Path) -> pa.Table:
    """Every row of the live shards that `latest.json` names."""
    number = json.loads((out / "latest.json").read_text())["snapshot"]
    shards = pq.read_table(out / f"snapshots/{number:04d}.parquet")["path"].to_pylist()
    return pa.concat_tables([pq.read_table(out / path) for path in shards])


def shards_of_names(out: Path) -> dict[str, str]:
    """The path of the live shard that holds each file name."""
    number = json.loads((out / "latest.json").read_text())["snapshot"]
    shards = pq.read_table(out / f"snapshots/{number:04d}.parquet")["path"].to_pylist()
    return {
        name: path
        for path in shards
        for name in pq.read_table(out / path, columns=["file_name"])["file_name"].to_pylist()
    }


def shard_files(out: Path) -> dict[str, tuple[int, int]]:
    """Name -> (modification time in ns, bytes) of every shard object."""
    files = sorted((out / "segments").rglob("*.parquet"))
    return {str(f.relative_to(out)): (f.stat().st_mtime_ns, f.stat().st_size) for f in files}
