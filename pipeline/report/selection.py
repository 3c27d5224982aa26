"""Which images of a run to look at: some at random, the worst, or those of nearly this name."""

from __future__ import annotations

import random
from typing import Final

from pipeline.errors import UserError
from pipeline.report.sql import choose_evaluation, query
from pipeline.run.folder import Snapshot
from pipeline.run.run import Run

NEAREST: Final = 3
# Every name is compared: about two seconds a million on one core.
COMPARED_NAMES: Final = 5_000_000


def random_names(run: Run, count: int, *, snapshot: int | None = None, seed: int = 0) -> list[str]:
    """File names of up to `count` segmented images, the same for the same seed.

    The hash of its name puts an image into a shard, so a few shards are a random sample of all
    images: no other shard is read.
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
    """File names of the `count` segmented images of the lowest PQ, the lowest first.

    evaluation: its name, by default the newest of the snapshot. Raises UserError if there is none.
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
    """Up to three file names of the run that resemble this one; none where the run is too large.

    Names that end in the same file name come first, whatever their folder.
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
