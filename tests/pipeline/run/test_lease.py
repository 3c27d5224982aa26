"""One writer per run folder."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LeaseError, TryAgainError
from pipeline.run.lease import LEASE_FILE, Hold, Process, lease, read_holder
from pipeline.storage.entry import Entry
from pipeline.storage.local import LocalObjects
from pipeline.storage.storage import Storage
from tests.servers import S3Server


def wait_to_be_interrupted() -> None:
    """At most 20 seconds; a simulated signal does not end a sleep that has begun."""
    for _ in range(400):
        time.sleep(0.05)


def held_by(pid: int, host: str = socket.gethostname(), submission: str = "") -> bytes:
    holder = {"owner": "other", "host": host, "pid": pid, "submission": submission}
    return json.dumps(holder).encode()


def holder_of(storage: Storage) -> int | None:
    """The process that holds the folder."""
    holder = read_holder(storage)
    return None if holder is None else holder["pid"]


def epoch_of(storage: Storage) -> int:
    return json.loads(storage.read(LEASE_FILE))["epoch"]


def test_a_holder_is_named_only_while_it_holds(storage: Storage) -> None:
    with lease(storage):
        assert holder_of(storage) == os.getpid()
    assert holder_of(storage) is None


def test_the_epoch_grows_with_each_holder_and_outlives_them(storage: Storage) -> None:
    seen = []
    for _ in range(3):
        with lease(storage) as hold:
            seen.append(hold.epoch)
            assert epoch_of(storage) == hold.epoch
    assert seen == [1, 2, 3]
    assert epoch_of(storage) == 3


def test_the_epoch_goes_on_where_the_lease_was_deleted_by_hand(storage: Storage) -> None:
    storage.write("latest.json", b'{"snapshot": 5, "epoch": 7}')
    with lease(storage) as hold:
        assert hold.epoch == 8


def test_a_lease_of_an_older_version_is_followed(storage: Storage) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    storage.write(LEASE_FILE, held_by(dead.pid))
    storage.write("latest.json", b'{"snapshot": 5}')
    with lease(storage) as hold:
        assert hold.epoch == 1
    assert json.loads(storage.read("latest.json")) == {"snapshot": 5, "epoch": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_lease_that_was_written_in_half_runs_out(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    storage.write(LEASE_FILE, content)
    with pytest.raises(LeaseError, match=r"by process \? on \?"), lease(storage):
        pass
    monkeypatch.setattr("pipeline.run.lease.EXPIRES_SECONDS", -1.0)
    with lease(storage):
        pass


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


def as_driver(monkeypatch: pytest.MonkeyPatch, submission: str, cluster: str) -> None:
    """What Ray and `submit` put into a driver's environment."""
    config = {"runtime_env": {}, "metadata": {"job_submission_id": submission}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    monkeypatch.setenv("PANOPTIC_CLUSTER", cluster)


def test_the_same_submission_to_the_same_cluster_goes_on_at_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_driver(monkeypatch, "panoptic-1", "cluster-a")
    holder = {"submission": "panoptic-1", "cluster": "cluster-a"}
    storage.write(
        LEASE_FILE, json.dumps({**json.loads(held_by(1, "elsewhere")), **holder}).encode()
    )
    with lease(storage):
        assert json.loads(storage.read(LEASE_FILE))["submission"] == "panoptic-1"


def test_the_same_submission_to_another_cluster_waits_until_the_lease_runs_out(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a head that was lost with its driver, and replaced."""
    monkeypatch.setattr("pipeline.run.lease.EXPIRES_SECONDS", 1.5)
    monkeypatch.setattr("pipeline.run.lease.RENEW_SECONDS", 0.4)
    as_driver(monkeypatch, "panoptic-1", "cluster-b")
    holder = {"submission": "panoptic-1", "cluster": "cluster-a"}
    storage.write(
        LEASE_FILE, json.dumps({**json.loads(held_by(1, "elsewhere")), **holder}).encode()
    )
    began = time.monotonic()
    with lease(storage):
        assert time.monotonic() - began > 0.4  # S3 has whole seconds


@contextmanager
def renewed_elsewhere(storage: Storage, seconds: float, host: str = "elsewhere") -> Iterator[None]:
    """A driver of the same command that lives for so long, on another cluster."""
    held = {**json.loads(held_by(os.getpid(), host)), "submission": "panoptic-1", "cluster": "a"}
    ends = time.monotonic() + seconds
    done = threading.Event()

    def renew() -> None:
        for renewal in itertools.count():
            if time.monotonic() > ends or done.wait(0.1):
                return
            storage.write(LEASE_FILE, json.dumps({**held, "renewal": renewal}).encode())

    storage.write(LEASE_FILE, json.dumps(held).encode())
    thread = threading.Thread(target=renew)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.fixture
def on_another_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    as_driver(monkeypatch, "panoptic-1", "b")
    for name, seconds in (("RENEW", 0.4), ("EXPIRES", 1.5), ("ORPHAN", 1.0)):
        monkeypatch.setattr(f"pipeline.run.lease.{name}_SECONDS", seconds)


@pytest.mark.usefixtures("on_another_cluster")
def test_the_same_command_on_two_clusters_steals_no_living_lease(storage: Storage) -> None:
    with (
        renewed_elsewhere(storage, 20.0),
        pytest.raises(LeaseError, match="on elsewhere"),
        lease(storage),
    ):
        pass
    assert json.loads(storage.read(LEASE_FILE))["cluster"] == "a"


@pytest.mark.usefixtures("on_another_cluster")
@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_a_driver_that_outlives_its_head_for_a_while_is_waited_for(
    storage: Storage, host: str
) -> None:
    """A head that was started anew on its host is another cluster, too."""
    with renewed_elsewhere(storage, 0.6, host), lease(storage):
        assert json.loads(storage.read(LEASE_FILE))["cluster"] == "b"


def test_one_process_does_not_take_its_own_lease_for_an_earlier_try(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_driver(monkeypatch, "panoptic-1", "cluster-a")
    with lease(storage), pytest.raises(LeaseError), lease(storage):
        pass


def test_an_exception_gives_the_lease_back(storage: Storage) -> None:
    with pytest.raises(RuntimeError, match="boom"), lease(storage):
        raise RuntimeError("boom")
    assert holder_of(storage) is None


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
    assert holder_of(storage) is None


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


def test_a_renewal_whose_answer_was_lost_and_that_came_late_is_one_s_own(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Hold(storage, Process())
    hold.take()
    swap = Storage.swap

    def lost(self: Storage, path: str, old: bytes, new: bytes) -> bool:
        assert swap(self, path, old, new)
        raise OSError("no answer")

    monkeypatch.setattr(Storage, "swap", lost)
    hold.renew()
    monkeypatch.setattr(Storage, "swap", swap)
    assert hold.renew() > 1
    hold.check()
    hold.release()
    assert holder_of(storage) is None


class Asleep(Process):
    """A machine that was suspended for a while."""

    slept = 0.0

    def now(self) -> float:
        return super().now() + self.slept


def test_a_holder_that_slept_for_80_seconds_writes_nothing_more(storage: Storage) -> None:
    host = Asleep()
    hold = Hold(storage, host)
    hold.take()
    host.slept = 79.0
    hold.check()
    host.slept = 81.0
    with pytest.raises(TryAgainError, match="stood still"):
        hold.check()


def test_the_clock_runs_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(time, "clock_gettime", lambda clock: asked.append(clock) or 1.0)
    assert Process().now() == 1.0
    assert asked == [time.CLOCK_BOOTTIME]


def test_a_holder_that_stood_still_is_interrupted_though_no_write_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Asleep()

    def work() -> None:
        with lease(Storage(tmp_path), host=host):
            host.slept = 100.0
            wait_to_be_interrupted()

    began = time.monotonic()
    with pytest.raises(TryAgainError, match="stood still"):
        work()
    assert time.monotonic() - began < 5  # not when the next renewal is due


class NoTimes(LocalObjects):
    """A store whose listing says nothing of times."""

    def info(self, key: str) -> Entry:
        return super().info(key)._replace(last_modified=None)


def test_where_the_store_has_no_times_a_dead_lease_runs_out_by_being_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.lease.EXPIRES_SECONDS", 1.0)
    monkeypatch.setattr("pipeline.run.lease.RENEW_SECONDS", 0.4)
    storage = Storage(tmp_path)
    storage.objects = NoTimes()
    storage.write(LEASE_FILE, held_by(1, host="elsewhere"))
    began = time.monotonic()
    with lease(storage):
        assert 1.0 <= time.monotonic() - began < 5
