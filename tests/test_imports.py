"""Who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    path for folder in ("detr", "pipeline", "jobs") for path in (ROOT / folder).rglob("*.py")
)
FORBIDDEN = {
    "detr": {"pipeline", "jobs", "ray", "pyarrow", "fsspec", "s3fs", "obstore", "duckdb"},
    "pipeline": {"jobs"},
    "jobs": set[str](),
}
# Within pipeline/: who talks to Ray, and who must touch neither Ray nor the network.
RAY = {
    "graph",
    "segmenter",
    "fetch",
    "shards",
    "tally",
    "metrics",
    "evaluator",
    "capacity",
    "cluster",
    "execute",
    "device",
}
PURE = {
    "schema",
    "errors",
    "config",
    "rle",
    "rle_kernels",
    "pq",
    "pq_kernels",
    "plan",
    "placement",
    "budget",
    "body",
}
CLIENTS = {"fsspec", "s3fs", "obstore", "botocore", "boto3", "aiohttp", "pipeline.storage.storage"}
STORAGE = {"storage", "s3", "duckdb_files"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, in full and by its top level."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found | {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package, module = path.relative_to(ROOT).parts[0], path.stem
    found = imports(path)
    assert not found & FORBIDDEN[package]
    if package == "pipeline":
        assert "ray" not in found or module in RAY
        if module in PURE:
            assert not found & (CLIENTS | {"ray"})
        if module not in STORAGE | {"entry"}:
            assert not found & {"fsspec", "s3fs", "obstore", "botocore", "boto3", "aiohttp"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_a_head_holds(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_a_fetch_or_write_worker_loads_no_torch() -> None:
    """A worker process that imports it takes seconds and 300 MB more, on every CPU of a cluster."""
    code = (
        "import sys, pipeline.segmentation.fetch, pipeline.segmentation.sink, pipeline.evaluator; "
    )
    code += "print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
