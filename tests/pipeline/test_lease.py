"""One writer per run folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import LeaseError
from pipeline.lease import LEASE_FILE, lease
from pipeline.storage import Storage
from tests.servers import S3Server


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(tmp_path)
    server: S3Server = request.getfixturevalue("moto")
    server.client().create_bucket(Bucket="bucket")
    return Storage("s3://bucket/run")


def held_by(pid: int, host: str = socket.gethostname(), submission: str = "") -> bytes:
    holder = {"owner": "other", "host": host, "pid": pid, "submission": submission}
    return json.dumps(holder).encode()


def test_the_lease_is_there_only_while_it_is_held(storage: Storage) -> None:
    with lease(storage):
        assert json.loads(storage.read(LEASE_FILE))["pid"] == os.getpid()
    assert not storage.exists(LEASE_FILE)


def test_a_second_writer_is_refused_naming_the_first(storage: Storage) -> None:
    with lease(storage), pytest.raises(LeaseError) as caught, lease(storage):
        pass
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_dead_process_of_this_host_is_followed_at_once(storage: Storage) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    storage.write(LEASE_FILE, held_by(dead.pid))
    with lease(storage):
        assert json.loads(storage.read(LEASE_FILE))["pid"] == os.getpid()


def test_another_host_is_waited_for_until_its_lease_expires(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(LEASE_FILE, held_by(1, host="elsewhere"))
    with pytest.raises(LeaseError, match="process 1 on elsewhere"), lease(storage):
        pass
    monkeypatch.setattr("pipeline.lease.EXPIRES_SECONDS", -1.0)
    with lease(storage):
        pass


def test_the_same_submission_goes_on_at_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(LEASE_FILE, held_by(1, host="elsewhere", submission="raysubmit_1"))
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "raysubmit_1")
    with lease(storage):
        pass


def test_an_exception_gives_the_lease_back(storage: Storage) -> None:
    with pytest.raises(RuntimeError, match="boom"), lease(storage):
        raise RuntimeError("boom")
    assert not storage.exists(LEASE_FILE)


@pytest.mark.usefixtures("rclone")
def test_a_store_without_conditional_writes_still_works(rclone: S3Server) -> None:
    assert rclone.folder is not None
    (rclone.folder / "bucket").mkdir()
    with lease(Storage("s3://bucket/run")):
        pass
