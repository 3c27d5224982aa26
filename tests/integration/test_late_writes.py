"""A write that the network delivers when its job has long lost the folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import run as panoptic
from tests.factories import add_generation, named_images, publish_run
from tests.fault_proxy import Faults, fault_proxy
from tests.servers import S3Server

ROOT = Path(__file__).resolve().parents[2]


def upload_run(server: S3Server, folder: Path) -> None:
    """A run of three published snapshots at s3://data/run."""
    run = publish_run(folder, named_images(["a.jpg"]), shards=1)
    for number in (2, 3):
        add_generation(run, named_images([f"{number}.jpg"]), number=number, shards=1)
    client = server.client()
    client.create_bucket(Bucket="data")
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "data", f"run/{path.relative_to(folder)}")


def pointer(server: S3Server) -> dict[str, Any]:
    body = server.client().get_object(Bucket="data", Key="run/latest.json")["Body"]
    return json.loads(body.read())


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(300)
def test_a_late_write_of_an_earlier_writer_moves_nobody_back(
    moto: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload_run(moto, tmp_path / "run")

    def pointer_is_put(method: str, path: str) -> bool:
        return method == "PUT" and path.endswith("/latest.json")

    with fault_proxy(moto, Faults(), holds=pointer_is_put) as proxy:
        command = [sys.executable, "-m", "jobs.cli", "rollback", "s3://data/run"]
        environment = {**os.environ, **proxy.server.environment()}
        began = time.monotonic()
        late = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert late.returncode == 75, late.stderr
        assert time.monotonic() - began < 80  # it gives up before its lease may pass to another
        assert proxy.held >= 2  # it was tried again
        assert pointer(moto)["snapshot"] == 3

        assert panoptic(["rollback", "s3://data/run", "--to", "1"]) == 0
        moved = pointer(moto)
        assert (moved["snapshot"], moved["withdrawn"]) == (1, [3, 2])
        held = proxy.held
        proxy.let_go()
        deadline = time.monotonic() + 20
        while proxy.passed < held and time.monotonic() < deadline:
            time.sleep(0.1)
        assert proxy.passed == held
    assert pointer(moto) == moved
