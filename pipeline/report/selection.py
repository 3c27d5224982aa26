"""File names of a run for viewing: random images, the worst images, or names similar to a name."""

from __future__ import annotations

import random
from typing import Final

from pipeline.errors import UserError
from pipeline.report.sql import choose_evaluation, query
from pipeline.run.folder import Snapshot
from pipeline.run.run import Run

NEAREST: Final = 3
# Comparing takes about two seconds per million names on one core.
COMPARED_NAMES: Final = 5_000_000


def random_names(run: Run, count: int, *, snapshot: int | None = None, seed: int = 0) -> list[str]:
    """File names of up to `count` segmented images, the same for the same seed.

    Only a few shards are read: images are put into shards by the hash of their name, so each shard
    is a random sample.
    """
    shards = list(run.snapshot(snapshot).shards)
    draw = random.Random(seed)
    draw.shuffle(shards)
    names: list[str] = []
    for shard in shards:
        if len(names) >= count:
            break
        rows = run.read_shard(shard.path, ["file_name", "status"]).to_pylist()
        segmented = sorted(row["file_name"] for row in rows if row["status"] == "ok")
        names += draw.sample(segmented, min(count - len(names), len(segmented)))
    return names


def worst_names(
    run: Run, count: int, *, snapshot: int | None = None, evaluation: str | None = None
) -> list[str]:
    """File names of the `count` segmented images with the lowest PQ, the lowest first.

    evaluation: a name, by default the newest of the snapshot. Raises UserError without one.
    """
    number = run.snapshot(snapshot).number
    if choose_evaluation(run, number, evaluation) is None:
        raise UserError(
            f"{run.storage.url} has no evaluation to say which images are worst: run `panoptic "
            f"evaluate {run.storage.url} --truth FILE` first"
        )
    text = (
        "select file_name from per_image where status = 'scored' and pq is not null "
        f"order by pq, fn desc, file_name limit {count}"
    )
    return query(run, text, snapshot=number, evaluation=evaluation)["file_name"].to_pylist()


def nearest_names(run: Run, file_name: str, snapshot: Snapshot) -> list[str]:
    """Up to NEAREST file names of the run that are similar to `file_name`; names with the same last
    part come first. Empty for a run of more than COMPARED_NAMES images.
    """
    if snapshot.rows > COMPARED_NAMES:
        return []
    name = file_name.replace("'", "''")
    last = name.rpartition("/")[2]
    text = (
        "select file_name from images order by "
        f"parse_filename(file_name, false, 'forward_slash') = '{last}' desc, "
        f"jaro_winkler_similarity(file_name, '{name}') desc, file_name limit {NEAREST}"
    )
    return query(run, text, snapshot=snapshot.number)["file_name"].to_pylist()
