"""Every path in a run folder and in a folder of nights, relative to the folder.

docs/run-folder.md draws both folders.
"""

from __future__ import annotations

RUN_FILE = "run.json"
LATEST_FILE = "latest.json"
BASELINE_FILE = "baseline.json"  # of a folder of nights
SUCCESS_FILE = "_SUCCESS"
REMOVED_FILE = "removed"  # exists while `prune` deletes the whole run

PLAN_FILE = "generation.json"
PQ_FILE = "pq.json"  # of an evaluation; written last

# Folders. Below each, the number of a generation or of a snapshot is the next name.
MANIFEST = "manifest"
SEGMENTS = "segments"
STATS = "stats"
SNAPSHOTS = "snapshots"
EVALUATION = "evaluation"
NIGHTS = "nights"  # of a folder of nights: the summaries


# Plans: what a generation computes.


def manifest_folder(generation: int) -> str:
    return f"{MANIFEST}/{generation:04d}"


def plan_path(generation: int) -> str:
    """`generation.json`, which is written last and commits the generation."""
    return f"{manifest_folder(generation)}/{PLAN_FILE}"


def part_path(generation: int, part: int, plan: str = "") -> str:
    """A manifest part: the rows of 64 shards. plan: `Generation.plan`, empty in older runs."""
    return f"{manifest_folder(generation)}/part-{part:05d}{_of(plan)}.parquet"


def dropped_path(generation: int, plan: str = "") -> str:
    """The list of rows that the next snapshot no longer holds. plan: as in `part_path`."""
    return f"{manifest_folder(generation)}/dropped{_of(plan)}.parquet"


def _of(plan: str) -> str:
    return f"-{plan}" if plan else ""


# Rows: what a generation computed.


def segments_folder(generation: int) -> str:
    return f"{SEGMENTS}/{generation:04d}"


def shard_path(generation: int, shard: int, shards: int) -> str:
    return f"{segments_folder(generation)}/shard-{shard:06d}-of-{shards:06d}.parquet"


def kept_path(generation: int, origin: int, shard: int) -> str:
    """The path of a shard that was copied without its dropped rows.

    generation: that made the copy; origin: that computed the shard.
    """
    return f"{segments_folder(generation)}/kept-{origin:04d}-{shard:06d}.parquet"


SHARD_PATTERN = r"segments/(\d+)/shard-(\d+)-of-\d+\.parquet"  # generation, shard
KEPT_PATTERN = (
    r"segments/\d+/kept-(\d+)-(\d+)\.parquet"  # generation that computed the shard, shard
)


def part_name(shard: str) -> str:
    """`segments/0001/shard-a-of-b.parquet` -> `0001-shard-a-of-b.parquet`."""
    return "-".join(shard.split("/")[1:])


def stats_path(generation: int) -> str:
    return f"{STATS}/{generation:04d}.json"


# Snapshots, and what is made of each.


def snapshot_name(number: int) -> str:
    """A snapshot's name in messages: its path without the suffix."""
    return f"{SNAPSHOTS}/{number:04d}"


def snapshot_path(number: int) -> str:
    return f"{snapshot_name(number)}.parquet"


SNAPSHOT_PATTERN = r"(.+)/snapshots/(\d+)\.parquet"  # run folder, number


def evaluations_folder(snapshot: int) -> str:
    return f"{EVALUATION}/{snapshot:04d}"


def evaluation_folder(snapshot: int, name: str) -> str:
    return f"{evaluations_folder(snapshot)}/{name}"


def truth_folder(evaluation: str) -> str:
    """The folder of the converted ground truth. evaluation: the folder of the evaluation."""
    return f"{evaluation}/truth"


def report_path(snapshot: int) -> str:
    return f"report/{snapshot:04d}.html"


# Beside the runs.


def input_folder(digest: str) -> str:
    """The folder of the files that `submit` uploads. digest: hash of their content."""
    return f"inputs/{digest[:12]}"


def night_path(stamp: str, suffix: str) -> str:
    """The summary of a night. stamp: the night's time; suffix: .json or .txt."""
    return f"{NIGHTS}/{stamp}{suffix}"
