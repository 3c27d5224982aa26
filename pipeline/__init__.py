"""The data plane: object storage -> Ray Data -> Parquet shards of RLE -> PQ.

`segment(make_config({...}))` is the whole job as one call; `open_run(url)` reads a run folder;
`evaluate_run` and `evaluate_files` score; `query` and `connect` give SQL over a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import detr  # noqa: F401  # before torch: sets how its threads wait

if TYPE_CHECKING:
    from pipeline.config import RunConfig, make_config
    from pipeline.evaluation.coco_files import evaluate_files
    from pipeline.evaluation.evaluator import evaluate_run
    from pipeline.report.sql import connect, query
    from pipeline.run.run import Run, open_run
    from pipeline.segmentation.job import Summary, retry, segment

__all__ = [
    "Run",
    "RunConfig",
    "Summary",
    "connect",
    "evaluate_files",
    "evaluate_run",
    "make_config",
    "open_run",
    "query",
    "retry",
    "segment",
]

_HOME = {
    "Run": "pipeline.run.run",
    "RunConfig": "pipeline.config",
    "Summary": "pipeline.segmentation.job",
    "connect": "pipeline.report.sql",
    "evaluate_files": "pipeline.evaluation.coco_files",
    "evaluate_run": "pipeline.evaluation.evaluator",
    "make_config": "pipeline.config",
    "open_run": "pipeline.run.run",
    "query": "pipeline.report.sql",
    "retry": "pipeline.segmentation.job",
    "segment": "pipeline.segmentation.job",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: importing Ray and torch takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
