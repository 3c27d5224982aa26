"""The command line in a process that kills itself, as `kill -9` would, at a named step.

    python -m tests.dying write_snapshot 0 segment SOURCE --out OUT ...

The first word is the method of `pipeline.run.run.Run` that it doesn't live to call; the second is
how many write tasks die inside their write, each with half a file on the disk.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

import pipeline.segmentation.graph
from jobs.cli import main
from pipeline.run.run import Run
from pipeline.segmentation.sink import ShardSink
from pipeline.storage.local import TEMPORARY

DEATHS = "PANOPTIC_TEST_DEATHS"


def die(*arguments: Any, **named: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingSink(ShardSink):
    """Dies in the middle of so many writes; each death leaves its number in a folder."""

    def _write(self, shard: int, unit: pa.Table) -> None:
        folder = Path(os.environ[DEATHS])
        for death in range(int(folder.name)):
            try:
                (folder / str(death)).touch(exist_ok=False)
            except FileExistsError:
                continue
            target = Path(self.storage.key(self.generation.shard_path(shard)))
            target.parent.mkdir(parents=True, exist_ok=True)
            (target.parent / f"{TEMPORARY}{death}").write_bytes(b"PAR1 half a shard")
            die()
        super()._write(shard, unit)


if __name__ == "__main__":
    _, step, deaths, *sys.argv[1:] = sys.argv
    if step != "-":
        setattr(Run, step, die)
    if int(deaths):
        from tests.dying import DyingSink as Imported  # so that workers find it by name

        pipeline.segmentation.graph.ShardSink = Imported  # type: ignore[misc]
    main()
