"""The data plane: object storage -> Ray Data -> Parquet shards of RLE -> PQ.

`segment(make_config({...}))` is the whole job as one call; `open_run(url)` reads a run folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import detr  # noqa: F401  # before torch, whose threads it tells how to wait

if TYPE_CHECKING:
    from pipeline.config import RunConfig, make_config
    from pipeline.job import Summary, retry, segment
    from pipeline.run.run import Run, open_run

__all__ = ["Run", "RunConfig", "Summary", "make_config", "open_run", "retry", "segment"]

_HOME = {
    "RunConfig": "pipeline.config",
    "make_config": "pipeline.config",
    "Summary": "pipeline.job",
    "retry": "pipeline.job",
    "segment": "pipeline.job",
    "Run": "pipeline.run.run",
    "open_run": "pipeline.run.run",
}


def __getattr__(name: str) -> Any:
    """Load a name when it is used: Ray and torch take seconds, and plan.py needs neither."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
