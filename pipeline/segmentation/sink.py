"""The sink of the Ray Data graph: the rows of one work unit in, one Parquet shard out.

The shard is encoded in memory, checked (each image of the unit exactly once) and written by one
conditional PUT: a reader sees a whole shard or none, and a worker that dies leaves no part of one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.actor import ActorHandle
from ray.data import Datasink

from pipeline.cluster.progress_actor import begin, check_budget
from pipeline.error_budget import FirstTries
from pipeline.errors import UserError
from pipeline.run.shard_format import ERROR_COLUMNS, Provenance, failures_in, put_shard
from pipeline.schema import list_values
from pipeline.sharding import Generation, unit_key
from pipeline.storage.entry import as_lost
from pipeline.storage.storage import Storage

UNIT_COLUMN: Final = "shard"


class ShardSink(Datasink[int]):
    """Writes each unit's rows as one shard and reports it to the progress actor."""

    def __init__(
        self,
        storage: Storage,
        generation: Generation,
        provenance: Provenance,
        progress_actor: ActorHandle,
    ) -> None:
        self.storage = storage
        self.generation = generation
        self.provenance = provenance
        self.progress_actor = progress_actor

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> int:
        """The number of shards written: small, since the driver keeps the result of each task."""
        written = 0
        for block in blocks:
            owner = block[UNIT_COLUMN].to_numpy()
            for shard in np.unique(owner).tolist():
                self._write(shard, block.filter(pa.array(owner == shard)))
                written += 1
        return written

    def _write(self, shard: int, unit: pa.Table) -> None:
        started = time.monotonic()
        key = unit_key(self.generation.number, shard)
        begin(self.progress_actor, "writing", key)
        rows = unit.drop_columns([UNIT_COLUMN])
        expected = self.generation.rows[shard]
        names = len(rows["file_name"].unique())
        assert rows.num_rows == names == expected, (shard, rows.num_rows, names, expected)
        path = self.generation.shard_path(shard)
        try:
            size = put_shard(self.storage, path, rows, self.provenance)
        except UserError:
            raise
        except Exception as error:
            raise as_lost(error, f"can't write {self.storage.join(path)}") from error
        segments = len(list_values(rows["segment_id"]))
        outcomes = rows.select([*ERROR_COLUMNS, "attempts"])
        first = outcomes.filter(pc.field("attempts") == 1)
        report = self.progress_actor.written.remote(
            key,
            images=rows.num_rows,
            failures=failures_in(outcomes),
            segments=segments,
            size=size,
            seconds=time.monotonic() - started,
            first_tries=FirstTries(first.num_rows, failures_in(first)),
            empty=_empty(rows),
        )
        check_budget(report)


def _empty(rows: pa.Table) -> int:
    """How many images are ok and have no segment."""
    ok = rows.filter(pc.field("status") == "ok")["segment_id"]
    return sum(not segments for segments in ok.to_pylist())
