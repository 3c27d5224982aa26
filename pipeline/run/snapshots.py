"""One snapshot of a run with its evaluations, opened by URL.

The URL is that of a run folder (its published snapshot) or of a snapshot object, such as
`OUT/snapshots/0003.parquet`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from detr.categories import Categories
from pipeline.errors import UserError
from pipeline.layout import (
    PQ_FILE,
    SNAPSHOT_PATTERN,
    evaluation_folder,
    evaluations_folder,
    snapshot_path,
)
from pipeline.run.folder import Snapshot
from pipeline.run.run import Run, open_run
from pipeline.storage.storage import normalize_url


class IncompleteError(UserError):
    """Files of an evaluation are missing: it must be made again."""


@dataclass(frozen=True)
class RunSnapshot:
    """One snapshot of a run, and its evaluations."""

    run: Run
    number: int

    @property
    def url(self) -> str:
        return self.run.storage.join(snapshot_path(self.number))

    @property
    def snapshot(self) -> Snapshot:
        return self.run.snapshot(self.number)

    def evaluations(self) -> list[str]:
        """Names of the complete evaluations of this snapshot, sorted."""
        folder = evaluations_folder(self.number)
        paths = (entry.path.split("/") for entry in self.run.storage.list(folder))
        return sorted(parts[2] for parts in paths if len(parts) == 4 and parts[3] == PQ_FILE)

    def result(self, name: str) -> dict[str, Any]:
        """`pq.json` of an evaluation."""
        return json.loads(self.run.storage.read(f"{self._folder(name)}/{PQ_FILE}"))

    def categories(self, name: str | None = None) -> Categories:
        """The run's label set; with the evaluation `name`, the label set of that evaluation.

        The latter is made by --map-categories, or is the run's followed by the categories that only
        the truth has, whose segments count as misses.
        """
        of_run = self.run.info.categories
        if name is None:
            return of_run
        result = self.result(name)
        if "category_map" in result:
            return Categories.from_json(result["category_map"]["categories"])
        more = result.get("more_categories")
        if more is None:  # an evaluation of an older version
            columns = ("category_id", "name", "isthing")
            table = self.run.read_shard(f"{self._folder(name)}/per_class.parquet", columns)
            more = [
                {"id": row["category_id"], "name": row["name"], "isthing": int(row["isthing"])}
                for row in table.to_pylist()
                if row["category_id"] not in of_run.ids
            ]
        return Categories([*of_run, *Categories.from_json(more)]) if more else of_run

    def per_image(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The per-image rows of an evaluation, one table a shard."""
        for path in self.rows(name):
            yield self.run.read_shard(path, columns)

    def rows(self, name: str) -> list[str]:
        """Paths of the objects with per-image rows of an evaluation, relative to the run folder.

        Raises IncompleteError if some are missing.
        """
        folder = self.rows_folder(name)
        paths = sorted(entry.path for entry in self.run.storage.list(folder))
        written = self.result(name).get("files", 0)  # not recorded by older versions
        if len(paths) < written:
            raise IncompleteError(
                f"the evaluation {name!r} of {self.url} has {len(paths):,} of {written:,} files of "
                "per-image rows: run `panoptic evaluate` again"
            )
        return paths

    def rows_folder(self, name: str) -> str:
        """The folder of per-image rows, which `pq.json` names, relative to the run folder."""
        return f"{self._folder(name)}/{self.result(name).get('per_image', 'per_image')}"

    def _folder(self, name: str) -> str:
        return evaluation_folder(self.number, name)


def open_snapshot(url: str, options: Mapping[str, str] | None = None) -> RunSnapshot:
    """The snapshot at a URL: of a snapshot object, or of a run folder (its published one).

    Raises UserError if there is none.
    """
    match = re.fullmatch(SNAPSHOT_PATTERN, normalize_url(url))
    if match:
        run = open_run(match[1], options)
        return RunSnapshot(run, run.snapshot(int(match[2])).number)
    run = open_run(url, options)
    number = run.latest()
    if number is None:
        raise UserError(
            f"{run.storage.url} has no published snapshot yet: name one of its snapshots "
            "(OUT/snapshots/0001.parquet), or finish the run"
        )
    return RunSnapshot(run, number)
