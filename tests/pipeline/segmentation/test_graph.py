"""The graph as Ray runs it: how far its pool grows."""

from __future__ import annotations

import os
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


def test_tasks_are_retried_for_ever_in_a_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RETRIES, raising=False)
    with tasks_retried_for_ever():
        assert os.environ[RETRIES] == "-1"
    assert RETRIES not in os.environ
    monkeypatch.setenv(RETRIES, "7")
    with tasks_retried_for_ever():
        assert os.environ[RETRIES] == "7"
    assert os.environ[RETRIES] == "7"
