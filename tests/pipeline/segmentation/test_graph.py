"""The graph as Ray runs it: how far its pool grows."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import make_config
from pipeline.segmentation.graph import RETRIES, tasks_retried_for_ever
from pipeline.segmentation.job import segment
from tests.killing import make_field


@pytest.mark.usefixtures("ray_session")  # 2 CPUs
@pytest.mark.slow(seconds=30)
def test_a_pool_grows_to_its_most_while_its_actors_are_full(tmp_path: Path) -> None:
    field = make_field(tmp_path, images=60, per_shard=4, seconds=0.3)
    segment(make_config(field.settings))
    processes = {line.split()[1] for line in (tmp_path / "computed.log").read_text().splitlines()}
    assert len(processes) == 2
    field.check()


ROOT = Path(__file__).resolve().parents[3]


def makers_of_tasks(tree: ast.AST) -> Iterator[ast.expr]:
    """`ray.remote` with its arguments, wherever it makes a task of a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield from (own for own in node.decorator_list if "ray.remote" in ast.unparse(own))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("ray.remote("):
            yield node.func


def test_every_other_task_says_how_often_it_is_tried() -> None:
    """For Ray keeps the default that a job of this process set, and that is without a limit."""
    found = 0
    for path in (*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")):
        for maker in makers_of_tasks(ast.parse(path.read_text("utf-8"))):
            found += 1
            assert isinstance(maker, ast.Call), path
            given = {own.arg: own.value for own in maker.keywords}
            assert "max_retries" in given, f"{path}: {ast.unparse(maker)}"
            assert ast.unparse(given["max_retries"]) != "-1", path
    assert found >= 4


def test_tasks_are_retried_for_ever_in_a_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RETRIES, raising=False)
    with tasks_retried_for_ever():
        assert os.environ[RETRIES] == "-1"
    assert RETRIES not in os.environ
    monkeypatch.setenv(RETRIES, "7")
    with tasks_retried_for_ever():
        assert os.environ[RETRIES] == "7"
    assert os.environ[RETRIES] == "7"
