"""One writer per run folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LeaseError, TryAgainError
from pipeline.run.lease import LEASE_FILE, lease
from pipeline.storage.storage import Storage
from tests.servers import S3Server


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(tmp_path)
    server: S3Server = request.getfixturevalue("moto")
    server.client().create_bucket(Bucket="bucket")
    return Storage("s3://bucket/run")


def wait_to_be_interrupted() -> None:
    """At most 20 seconds; a simulated signal does not end a sleep that has begun."""
    for _ in range(400):
        time.sleep(0.05)


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
    monkeypatch.setattr("pipeline.run.lease.EXPIRES_SECONDS", -1.0)
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


@pytest.mark.usefixtures("rclone")
def test_a_store_without_conditional_writes_keeps_a_second_job_off_a_living_lease(
    rclone: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rclone.folder is not None
    (rclone.folder / "bucket").mkdir()
    monkeypatch.setattr("pipeline.run.lease.RENEW_SECONDS", 0.1)
    storage = Storage("s3://bucket/run")
    with lease(storage):
        time.sleep(0.3)
        with pytest.raises(LeaseError, match=f"written by process {os.getpid()} "), lease(storage):
            pass
        time.sleep(0.3)  # the holder renews what is still its own
    assert not storage.exists(LEASE_FILE)


def test_of_many_that_find_the_same_dead_owner_one_takes_over(storage: Storage) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    storage.write(LEASE_FILE, held_by(dead.pid))
    gate = threading.Barrier(8)
    hold = threading.Event()

    def contend() -> str:
        gate.wait()
        try:
            with lease(storage):
                hold.wait(20)
                return "held"
        except LeaseError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(contend) for _ in range(8)]
        deadline = time.monotonic() + 20
        while sum(future.done() for future in futures) < 7 and time.monotonic() < deadline:
            time.sleep(0.05)
        hold.set()
        outcomes = [future.result() for future in futures]
    assert sorted(outcomes) == ["held", *["refused"] * 7]


def test_an_owner_that_lost_its_lease_stops_and_leaves_the_successor_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.lease.RENEW_SECONDS", 0.1)
    successor = held_by(1, host="elsewhere")

    def work() -> None:
        with lease(storage):
            storage.write(LEASE_FILE, successor)
            wait_to_be_interrupted()

    with pytest.raises(LeaseError, match="another job has taken the lease over"):
        work()
    assert storage.read(LEASE_FILE) == successor


def test_a_lease_is_renewed_through_failures_of_the_store_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)
    monkeypatch.setattr("pipeline.run.lease.RENEW_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.run.lease.EXPIRES_SECONDS", 1.0)
    broken = threading.Event()
    swap = Storage.swap

    def unreliable(self: Storage, *arguments: Any) -> bool:
        if broken.is_set():
            raise OSError("no route to host")
        return swap(self, *arguments)

    monkeypatch.setattr(Storage, "swap", unreliable)

    def work() -> None:
        with lease(storage):
            broken.set()
            time.sleep(0.3)
            broken.clear()
            time.sleep(1.2)  # longer than the lease: it has been renewed since
            broken.set()
            wait_to_be_interrupted()

    with pytest.raises(TryAgainError, match="could not be written"):
        work()


def test_a_process_number_that_another_process_bears_by_now_is_a_dead_owner(
    storage: Storage,
) -> None:
    holder = {**json.loads(held_by(os.getpid())), "process": "an earlier one"}
    storage.write(LEASE_FILE, json.dumps(holder).encode())
    with lease(storage):
        pass


def test_a_host_of_the_same_name_is_another_machine(storage: Storage) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    holder = {**json.loads(held_by(dead.pid)), "machine": "another boot"}
    storage.write(LEASE_FILE, json.dumps(holder).encode())
    with pytest.raises(LeaseError), lease(storage):
        pass
