"""The command line in a process whose writes to a store are tried twice, not for five minutes.

python -m tests.impatient segment SOURCE --out OUT ...
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

import pipeline.segmentation.graph
import pipeline.storage.s3
from jobs.cli import main
from pipeline.segmentation.sink import ShardSink

WRITE_TRIES = 2


class ImpatientSink(ShardSink):
    """Sets the tries of the process that writes: a worker knows nothing of the driver's."""

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> int:
        pipeline.storage.s3.WRITE_TRIES = WRITE_TRIES
        return super().write(blocks, ctx)


if __name__ == "__main__":
    from tests.impatient import ImpatientSink as Imported  # so that workers find it by name

    pipeline.storage.s3.WRITE_TRIES = WRITE_TRIES
    pipeline.segmentation.graph.ShardSink = Imported  # type: ignore[misc]
    main()
