"""What the rooms keep, beside the rules of imports that `lint-imports` holds (pyproject.toml)."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def third_party_imports() -> set[str]:
    """The packages that the code imports anywhere, also inside functions."""
    own = {*sys.stdlib_module_names, "detr", "pipeline", "jobs"}
    found = set[str]()
    for package in ("detr", "pipeline", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {name.name.split(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    return found - own


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    distributions = packages_distributions()
    for name in third_party_imports():
        owners = {canonicalize_name(owner) for owner in distributions.get(name, (name,))}
        assert owners & declared, f"{name} is imported, and pyproject.toml does not declare it"


WORDS = ("edition", "publication", "marks", "tally", "resamples", "resampled")


def defined_names(tree: ast.AST) -> set[str]:
    """Modules' functions, classes, attributes and variables, as they are written."""
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return names


@pytest.mark.parametrize("package", ["detr", "pipeline", "jobs"])
def test_one_word_for_one_thing(package: str) -> None:
    """Words that stood for what is called snapshot, object info, progress actor or bootstrap."""
    for path in (ROOT / package).rglob("*.py"):
        names = {path.stem, *defined_names(ast.parse(path.read_text()))}
        for name in names:
            parts = {*name.lower().split("_"), name.lower()}
            assert not parts & {*WORDS}, f"{path}: {name}"


def public_names() -> dict[str, set[str]]:
    """Functions and classes without a leading underscore, and the modules that define each.

    A verb of jobs/ is called like the function of pipeline/ that it calls, and a wrapper like the
    kernel that it wraps: they mean the same.
    """
    found: dict[str, set[str]] = {}
    for package in ("detr", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if not isinstance(node, ast.FunctionDef | ast.ClassDef) or path.stem == "kernels":
                    continue
                if not node.name.startswith("_"):
                    found.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
    return found


def test_no_public_name_has_two_meanings() -> None:
    twice = {name: sorted(paths) for name, paths in public_names().items() if len(paths) > 1}
    assert twice == {}
