"""One image of a run, found by its name without an index.

The hash of a file name is its place: in each generation it can only be in one shard, and the names
of the shards say how many there are. So a lookup reads `latest.json`, the snapshot, and one shard
per live generation at most, newest first, however many images there are; of a large shard only the
names and one row group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.run.folder import RunFolder, Snapshot
from pipeline.sharding import name_hash, origin_of, shard_of

# A shard up to this size comes faster whole, by one GET, than by several ranges.
WHOLE_BYTES: Final = 8 << 20


class NoImageError(UserError):
    """The run has no image of this name."""


def has_row(run: RunFolder, file_name: str) -> bool:
    """Whether the published snapshot has an image of this name. Raises UserError if its shard can't
    be read."""
    try:
        find_row(run, file_name)
    except NoImageError:
        return False
    return True


def find_row(run: RunFolder, file_name: str, *, snapshot: Snapshot | None = None) -> dict[str, Any]:
    """The row of one image in a snapshot (by default the published one), all columns.

    Raises NoImageError if the run has no such image.
    """
    [row] = find_rows(run, [file_name], snapshot=snapshot)
    return row


def find_rows(
    run: RunFolder, file_names: Iterable[str], *, snapshot: Snapshot | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of some images, each once, shard by shard: a shard is read once for all of them.

    Raises NoImageError naming an image that the run doesn't have.
    """
    for _, row in locate_rows(run, file_names, snapshot=snapshot):
        yield row


def locate_rows(
    run: RunFolder, file_names: Iterable[str], *, snapshot: Snapshot | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`find_rows`, with the path of the shard that holds each row."""
    snapshot = run.snapshot() if snapshot is None else snapshot
    missing = set(file_names)
    sizes = {shard.path: shard.bytes for shard in snapshot.shards}
    for path, names in _candidates(run, snapshot, missing).items():
        here = names & missing
        if not here:
            continue  # a newer generation had them
        table = run.read_shard(path, names=here if sizes[path] > WHOLE_BYTES else None)
        for row in table.filter(pc.field("file_name").isin(list(here))).to_pylist():
            missing.discard(row["file_name"])
            yield path, row
    if missing:
        raise NoImageError(
            f"{run.storage.url} has no image {min(missing)!r}: names are paths relative to the "
            "source, as in the shards' file_name column"
        )


def _candidates(run: RunFolder, snapshot: Snapshot, names: set[str]) -> dict[str, set[str]]:
    """Which names each live shard may hold; shards of the newest generation first."""
    paths = {origin_of(shard.path): shard.path for shard in snapshot.shards}
    candidates: dict[str, set[str]] = {}
    for generation in sorted({generation for generation, _ in paths}, reverse=True):
        shards = _shards_in(run, [path for (own, _), path in paths.items() if own == generation])
        for name in sorted(names):
            path = paths.get((generation, shard_of(name_hash(name), shards)))
            if path is not None:
                candidates.setdefault(path, set()).add(name)
    return candidates


def _shards_in(run: RunFolder, paths: Sequence[str]) -> int:
    """How many shards a generation was planned with, from the name of any of its live ones.

    Where only copies are left of them (`kept-...`), their generation's plan says it.
    """
    for path in paths:
        match = _OF.search(path)
        if match:
            return int(match[1])
    return run.generation(origin_of(paths[0])[0]).shards


_OF: Final = re.compile(r"-of-(\d+)\.parquet$")
