"""Rows of a run by file name, without an index.

The hash of a file name gives its shard in each generation, whose number of shards is part of the
shards' names. So a lookup reads `latest.json`, the snapshot, and at most one shard per live
generation, newest first; of a large shard only the names and one row group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.run.folder import RunFolder, Snapshot
from pipeline.sharding import name_hash, origin_of, shard_of

# Up to this size one GET of the whole shard is faster than several ranged GETs.
WHOLE_BYTES: Final = 8 << 20


class NoImageError(UserError):
    """The run has no image of this name."""


def find_row(run: RunFolder, file_name: str, *, snapshot: Snapshot | None = None) -> dict[str, Any]:
    """The row of one image in a snapshot (by default the published one), all columns.

    Raises NoImageError if the snapshot has no such image.
    """
    [row] = find_rows(run, [file_name], snapshot=snapshot)
    return row


def find_rows(
    run: RunFolder, file_names: Iterable[str], *, snapshot: Snapshot | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of some images, all columns, in the order of shards; each shard is read once.

    Raises NoImageError at the end, naming an image that the snapshot doesn't have.
    """
    for _, row in locate_rows(run, file_names, snapshot=snapshot):
        yield row


def locate_rows(
    run: RunFolder, file_names: Iterable[str], *, snapshot: Snapshot | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`find_rows` with the path of each row's shard: (path, row)."""
    snapshot = run.snapshot() if snapshot is None else snapshot
    missing = set(file_names)
    sizes = {shard.path: shard.bytes for shard in snapshot.shards}
    for path, names in _candidates(run, snapshot, missing).items():
        wanted = names & missing
        if not wanted:
            continue  # their rows were in newer generations
        table = run.read_shard(path, names=wanted if sizes[path] > WHOLE_BYTES else None)
        for row in table.filter(pc.field("file_name").isin(list(wanted))).to_pylist():
            missing.discard(row["file_name"])
            yield path, row
    if missing:
        raise NoImageError(
            f"{run.storage.url} has no image {min(missing)!r}: names are paths relative to the "
            "source, as in the shards' file_name column"
        )


def _candidates(run: RunFolder, snapshot: Snapshot, names: set[str]) -> dict[str, set[str]]:
    """The names that each live shard may hold, by path; newest generation first."""
    paths = {origin_of(shard.path): shard.path for shard in snapshot.shards}
    candidates: dict[str, set[str]] = {}
    for generation in sorted({generation for generation, _ in paths}, reverse=True):
        shards = _shards_in(run, [path for (g, _), path in paths.items() if g == generation])
        for name in sorted(names):
            path = paths.get((generation, shard_of(name_hash(name), shards)))
            if path is not None:
                candidates.setdefault(path, set()).add(name)
    return candidates


def _shards_in(run: RunFolder, paths: Sequence[str]) -> int:
    """The number of shards of a generation, from the name of one of its live shards (`paths`).

    If only copies (`kept-...`) are live, from the generation's plan.
    """
    for path in paths:
        match = _OF.search(path)
        if match:
            return int(match[1])
    return run.generation(origin_of(paths[0])[0]).shards


_OF: Final = re.compile(r"-of-(\d+)\.parquet$")
