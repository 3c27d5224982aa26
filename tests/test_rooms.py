"""What the rooms keep, beside the rules of imports that `lint-imports` holds (pyproject.toml)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pipeline

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 14  # modules


def rooms() -> dict[str, list[str]]:
    """The modules of each folder of detr/ and pipeline/, without its `__init__`."""
    found: dict[str, list[str]] = {}
    for package in ("detr", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            if path.stem != "__init__":
                found.setdefault(str(path.parent.relative_to(ROOT)), []).append(path.stem)
    return found


def test_a_room_is_seen_at_a_glance() -> None:
    assert {room: modules for room, modules in rooms().items() if len(modules) > LARGEST} == {}


def test_no_room_hides_a_public_function() -> None:
    """Importing `pipeline.x` binds the room over a function `x` of the package."""
    assert not {Path(room).name for room in rooms()} & {*pipeline.__all__}


def test_a_fetch_or_write_worker_loads_no_torch() -> None:
    """A worker process that imports it takes seconds and 300 MB more, on every CPU of a cluster."""
    modules = ("segmentation.fetch", "segmentation.sink", "evaluation.evaluator")
    imports = ", ".join(f"pipeline.{module}" for module in modules)
    code = f"import sys, {imports}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
