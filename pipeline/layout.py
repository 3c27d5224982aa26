"""Where things lie in a run folder and in a folder of nights: every path, relative to the folder.

docs/run-folder.md draws both folders.
"""

from __future__ import annotations

RUN_FILE = "run.json"
LATEST_FILE = "latest.json"
BASELINE_FILE = "baseline.json"  # of a folder of nights
SUCCESS_FILE = "_SUCCESS"
REMOVED_FILE = "removed"  # while a prune removes the whole run

PLAN_FILE = "generation.json"
PQ_FILE = "pq.json"  # of an evaluation; written last

# Folders. Below each, the number of a generation or of a snapshot is the next name.
MANIFEST = "manifest"
SEGMENTS = "segments"
STATS = "stats"
SNAPSHOTS = "snapshots"
EVALUATION = "evaluation"
NIGHTS = "nights"  # of a folder of nights: what each night did


# Plans: what a generation computes.


def manifest_folder(generation: int) -> str:
    return f"{MANIFEST}/{generation:04d}"


def plan_path(generation: int) -> str:
    """The plan of a generation, written last: its commit."""
    return f"{manifest_folder(generation)}/{PLAN_FILE}"


def part_path(generation: int, part: int, plan: str = "") -> str:
    """Rows of 64 shards of the manifest. plan: of the generation; older plans have none."""
    return f"{manifest_folder(generation)}/part-{part:05d}{_of(plan)}.parquet"


def dropped_path(generation: int, plan: str = "") -> str:
    """The rows that leave the snapshot before."""
    return f"{manifest_folder(generation)}/dropped{_of(plan)}.parquet"


def _of(plan: str) -> str:
    return f"-{plan}" if plan else ""


# Rows: what a generation computed.


def segments_folder(generation: int) -> str:
    return f"{SEGMENTS}/{generation:04d}"


def shard_path(generation: int, shard: int, shards: int) -> str:
    return f"{segments_folder(generation)}/shard-{shard:06d}-of-{shards:06d}.parquet"


def kept_path(generation: int, origin: int, shard: int) -> str:
    """A copy of a shard of generation `origin` without the rows that left it."""
    return f"{segments_folder(generation)}/kept-{origin:04d}-{shard:06d}.parquet"


SHARD_PATTERN = r"segments/(\d+)/shard-(\d+)-of-\d+\.parquet"  # generation, shard
KEPT_PATTERN = r"segments/\d+/kept-(\d+)-(\d+)\.parquet"  # generation that computed it, shard


def part_name(shard: str) -> str:
    """`segments/0001/shard-a-of-b.parquet` -> `0001-shard-a-of-b.parquet`."""
    return "-".join(shard.split("/")[1:])


def stats_path(generation: int) -> str:
    return f"{STATS}/{generation:04d}.json"


# Snapshots: the live shards after a generation, and what was made of them.


def snapshot_name(number: int) -> str:
    """How people are told of a snapshot: its path without the suffix."""
    return f"{SNAPSHOTS}/{number:04d}"


def snapshot_path(number: int) -> str:
    return f"{snapshot_name(number)}.parquet"


SNAPSHOT_PATTERN = r"(.+)/snapshots/(\d+)\.parquet"  # run folder, number


def evaluations_folder(snapshot: int) -> str:
    return f"{EVALUATION}/{snapshot:04d}"


def evaluation_folder(snapshot: int, name: str) -> str:
    return f"{evaluations_folder(snapshot)}/{name}"


def truth_folder(evaluation: str) -> str:
    """The converted ground truth of an evaluation. evaluation: its folder."""
    return f"{evaluation}/truth"


def report_path(snapshot: int) -> str:
    return f"report/{snapshot:04d}.html"


# Beside the runs.


def input_folder(digest: str) -> str:
    """What `submit` uploads for a job. digest: of the content."""
    return f"inputs/{digest[:12]}"


def night_path(stamp: str, suffix: str) -> str:
    """What a night did, as .json or .txt. stamp: its time."""
    return f"{NIGHTS}/{stamp}{suffix}"
