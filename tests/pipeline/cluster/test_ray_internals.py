"""The private names of Ray that the product uses are there, and stand in one file."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.cluster.ray_internals import NAMES, START_SETTINGS

ROOT = Path(__file__).resolve().parents[3]
ALONE = ROOT / "pipeline/cluster/ray_internals.py"


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_ray_has_it(name: str) -> None:
    assert _resolve(name) is not None


def test_a_name_that_is_gone_is_found_out() -> None:
    with pytest.raises(AttributeError):
        _resolve("ray.data.Dataset.map_batches_of_long_ago")


@pytest.mark.parametrize("setting", START_SETTINGS)
def test_ray_starts_with_it(setting: str) -> None:
    source = inspect.getsource(inspect.unwrap(ray.init))
    assert f'"{setting}"' in source


@pytest.mark.parametrize("package", ["detr", "pipeline", "jobs"])
def test_no_other_module_names_them(package: str) -> None:
    private = (
        "ray._private",
        "ray._raylet",
        "ray.data._internal",
        "ray.autoscaler.v2",
        "_internal_kv",
    )
    for path in (ROOT / package).rglob("*.py"):
        if path != ALONE:
            text = path.read_text()
            assert not [name for name in (*private, "map_batches_internal") if name in text], path


def _resolve(name: str) -> Any:
    """The object of a dotted name: the longest module of it, then attributes."""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        try:
            found = importlib.import_module(".".join(words[:count]))
        except ModuleNotFoundError:
            continue
        for word in words[count:]:
            found = getattr(found, word)
        return found
    raise ModuleNotFoundError(name)
