"""What a store guarantees is tried on it, not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.guarantees import guarantees
from pipeline.storage.storage import Storage
from tests.servers import S3Server


def kept(storage: Storage) -> dict[str, bool]:
    found = {each.name: each.kept for each in guarantees(storage)}
    assert list(storage.list()) == []  # it leaves nothing
    return found


ALL = {"create": True, "replace": True, "age": True}


def test_a_local_disk_keeps_all(tmp_path: Path) -> None:
    assert kept(Storage(tmp_path / "new")) == ALL
    assert not (tmp_path / "new").exists()


def test_locks_that_are_private_to_a_host_replace_nothing_for_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS mount with `nolock`, by what /proc/self/mounts would say of it."""
    read = Path.read_text
    mounts = f"server:/x {tmp_path} nfs4 rw,nolock 0 0\n"
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, *rest: mounts if str(path) == "/proc/self/mounts" else read(path, *rest),
    )
    assert kept(Storage(tmp_path / "new")) == {**ALL, "replace": False}


def test_s3_with_conditional_writes_keeps_all(moto: S3Server) -> None:
    moto.client().create_bucket(Bucket="bucket")
    assert kept(Storage("s3://bucket/run")) == ALL


@pytest.mark.usefixtures("rclone")
def test_s3_without_them_has_times_alone(rclone: S3Server) -> None:
    assert rclone.folder is not None
    (rclone.folder / "bucket").mkdir()
    found = kept(Storage("s3://bucket/run"))
    assert found == {"create": False, "replace": False, "age": True}


def test_other_file_systems_promise_no_replacement() -> None:
    assert not kept(Storage("memory://bucket/run"))["replace"]
