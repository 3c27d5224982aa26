"""Conditional writes through faults: what is made is made once, and known for one's own."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage.conditional import create, replace
from pipeline.storage.entry import Fetched, passes
from pipeline.storage.local import LocalObjects, has_private_locks
from pipeline.storage.storage import FsspecObjects, Storage
from tests.fault_proxy import Faults, fault_proxy
from tests.kept_listings import KeptListings
from tests.servers import S3Server


@pytest.fixture
def bucket(moto: S3Server) -> S3Server:
    moto.client().create_bucket(Bucket="bucket")
    return moto


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Script:
    """One object of a store whose answers are written down."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.content: bytes | None = None
        self.requests = 0

    limits = LocalObjects.limits

    def look(self, key: str) -> Fetched | None:
        return None if self.content is None else Fetched(self.content, None)

    def create(self, key: str, data: bytes, *, large: bool) -> bool:
        self.requests += 1
        answer = self.answers.pop(0)
        if answer in (True, "unanswered") and self.content is None:
            self.content = data
        if answer == "unanswered" or answer == "lost":
            raise TimeoutError
        return answer

    def replace(self, key: str, old: Fetched, new: bytes) -> bool:
        answer = self.answers.pop(0)
        self.content = new
        if answer == "unanswered":
            raise TimeoutError
        return answer

    def delete(self, key: str) -> None:
        raise NotImplementedError


def test_a_create_that_was_made_and_not_answered_is_one_s_own() -> None:
    store = Script("unanswered", False)
    assert create(store, "key", b"mine", Clock())
    assert store.requests == 2


def test_a_create_that_was_lost_is_made_again() -> None:
    store = Script("lost", True)
    assert create(store, "key", b"mine", Clock())


def test_a_refusal_where_nothing_is_there_is_no_answer() -> None:
    """A 409 of S3: another create was under way at that moment, and failed."""
    store = Script(False, False, True)
    assert create(store, "key", b"mine", Clock())
    assert store.content == b"mine"


def test_what_another_made_first_is_told() -> None:
    store = Script("lost", False)
    store.content = b"another's"
    assert not create(store, "key", b"mine", Clock())


def test_a_replacement_that_was_made_and_not_answered_is_one_s_own() -> None:
    store = Script("unanswered")
    store.content = b"old"
    assert replace(store, "key", b"old", b"new", Clock())


@pytest.mark.parametrize("large", [False, True])
def test_creates_and_replacements_through_a_broken_network(bucket: S3Server, large: bool) -> None:
    faults = Faults(unavailable=0.1, reset=0.1, truncated=0.1)
    with (
        pytest.MonkeyPatch.context() as patch,
        fault_proxy(bucket, faults, seed=3, applies=lambda *_: True) as proxy,
    ):
        proxy.server.point(patch)
        storage = Storage("s3://bucket/folder")
        storage.clock = Clock()
        make = storage.create_shard if large else storage.write_if_absent
        for number in range(5):
            assert make(f"{number}", b"mine")
            assert not make(f"{number}", b"another's")
            assert storage.swap(f"{number}", b"mine", b"new")
            assert not storage.swap(f"{number}", b"mine", b"newer")
        assert proxy.injected.total() > 5
    assert Storage("s3://bucket/folder").read("0") == b"new"


def test_a_small_write_is_given_up_in_40_seconds(bucket: S3Server) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        fault_proxy(bucket, Faults(unavailable=1.0), applies=lambda *_: True) as proxy,
    ):
        proxy.server.point(patch)
        storage = Storage("s3://bucket/folder")
        storage.clock = clock = Clock()
        with pytest.raises(Exception, match="503") as caught:
            storage.write_if_absent("lease.json", b"x")
        assert passes(caught.value)
        assert clock.seconds <= 40
        limits = storage.objects.limits(large=False)
    assert (limits.seconds, limits.each) == (40, 10)


def test_a_store_that_knows_no_conditions_is_written_without(bucket: S3Server) -> None:
    def conditional(method: str, path: str) -> bool:
        """The first PUT: those after it bear no condition any more."""
        return method == "PUT" and proxy.requests[method, path] == 1

    with (
        pytest.MonkeyPatch.context() as patch,
        fault_proxy(bucket, Faults(unsupported=1.0), applies=conditional) as proxy,
    ):
        proxy.server.point(patch)
        storage = Storage("s3://bucket/folder")
        assert storage.write_if_absent("x", b"1")
        assert not storage.write_if_absent("x", b"2")
        assert storage.swap("x", b"1", b"3")
        assert storage.read("x") == b"3"
        assert proxy.injected["unsupported"] == 1


def test_a_listing_shows_what_was_written_since_the_one_before() -> None:
    objects = FsspecObjects(KeptListings())
    objects.put("/listed/segments/a", b"x")
    assert [entry.path for entry in objects.list("/listed")] == ["/listed/segments/a"]
    objects.put("/listed/segments/b", b"x")
    assert len(list(objects.list("/listed"))) == 2


@pytest.mark.parametrize(
    "marks",
    [
        {"last_modified": "2026-11-27T12:00:00+00:00"},  # adlfs gives a datetime, some a text
        {"updated": "2026-11-27T12:00:00.000Z"},
        {"mtime": 1795780800.0},
        {"LastModified": "2026-11-27T12:00:00", "created": "2026-11-01T00:00:00"},
    ],
)
def test_the_time_of_an_object_is_read_under_any_client_s_name(marks: dict[str, Any]) -> None:
    class Told(MemoryFileSystem):
        def info(self, path: str, **options: Any) -> dict[str, Any]:
            return {"name": path, "size": 1, "type": "file", **marks}

    modified = FsspecObjects(Told()).info("x").last_modified
    assert modified is not None
    assert modified.isoformat() == "2026-11-27T12:00:00+00:00"


def test_local_files_are_made_by_a_link_and_are_on_the_disk_before_they_have_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the calls that a loss of power, or a second host on NFS, would put to the test."""
    calls: list[str] = []

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            place = arguments[0]
            if isinstance(place, int):
                place = os.readlink(f"/proc/self/fd/{place}")
            kind = "temporary" if ".tmp-" in str(place) else "folder"
            if str(place).endswith("-lock"):
                access = fcntl.fcntl(arguments[0], fcntl.F_GETFL) & os.O_ACCMODE
                kind = "lock, writable" if access == os.O_RDWR else "lock"
            calls.append(f"{name} {kind}")
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, watched)

    storage = Storage(tmp_path)
    for name in ("fsync", "link", "replace"):
        watch(os, name)
    watch(fcntl, "flock")
    storage.create_shard("shard", b"x")
    assert calls == ["fsync temporary", "link temporary", "fsync folder"]
    calls.clear()
    storage.write("latest.json", b"1")
    assert calls == ["fsync temporary", "replace temporary", "fsync folder"]
    calls.clear()
    assert storage.swap("latest.json", b"1", b"2")
    assert calls[0] == "flock lock, writable"  # only such a lock NFS carries to its server
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []
    calls.clear()
    storage.create_shard("segments/0001/shard", b"x")  # two new folders, each with its name on disk
    assert calls == ["fsync folder"] * 2 + ["fsync temporary", "link temporary", "fsync folder"]


@pytest.mark.parametrize(
    ("options", "private"),
    [("rw,vers=4.2", False), ("rw,nolock", True), ("rw,vers=3,local_lock=flock", True)],
)
def test_an_nfs_mount_that_keeps_its_locks_is_known(
    tmp_path: Path, options: str, private: bool
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\nserver:/x /mnt/my\\040nfs nfs4 {options} 0 0\n"
        "/dev/sdb /mnt/other ext4 rw,nolock 0 0\n"
    )
    assert has_private_locks(Path("/mnt/my nfs/runs/1"), str(mounts)) == private
    assert not has_private_locks(Path("/mnt/other/x"), str(mounts))
    assert not has_private_locks(Path("/home"), str(mounts))
