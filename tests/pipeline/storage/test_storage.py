"""Folders on a local disk and on S3: atomic writes, odd names, listings that lose nothing."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import UserError
from pipeline.storage.objects import Gets
from pipeline.storage.storage import Storage, normalize_url
from tests.servers import S3Server

ODD_NAMES = ["a b.jpg", "q?#%+&.jpg", "日本.jpg", "x<y>.jpg", "pct%20.jpg", "deep/er/z.jpg"]


def test_what_is_written_is_read_listed_sized_and_deleted(storage: Storage) -> None:
    for name in ODD_NAMES:
        storage.write(name, name.encode())
    assert {entry.path: entry.size for entry in storage.list()} == {
        name: len(name.encode()) for name in ODD_NAMES
    }
    for name in ODD_NAMES:
        assert storage.read(name) == name.encode()
        with storage.open(name) as file:
            file.seek(1)
            assert file.read() == name.encode()[1:]
    storage.delete(ODD_NAMES[0])
    assert not storage.exists(ODD_NAMES[0])
    assert [entry.path for entry in storage.list("deep")] == ["deep/er/z.jpg"]


async def _get(uri: str) -> bytes:
    return (await Gets({}).get(uri)).data


def test_a_uri_is_read_by_itself(storage: Storage) -> None:
    for name in ODD_NAMES:
        storage.write(name, name.encode())
        assert asyncio.run(_get(storage.join(name))) == name.encode()
    with pytest.raises(FileNotFoundError):
        asyncio.run(_get(storage.join("nowhere.jpg")))


def test_an_absent_object_is_file_not_found_and_an_absent_folder_is_empty(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("nowhere")
    with pytest.raises(FileNotFoundError):
        storage.info("nowhere")
    assert list(storage.list("nothing")) == []


def test_only_the_first_of_two_conditional_writes_wins(storage: Storage) -> None:
    assert storage.write_if_absent("lease", b"1")
    assert not storage.write_if_absent("lease", b"2")
    assert storage.read("lease") == b"1"


def test_a_storage_travels_between_processes(storage: Storage) -> None:
    storage.write("x", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("x") == b"1"


def test_keys_that_obstore_cannot_express_are_listed_and_read(moto: S3Server) -> None:
    client = moto.client()
    client.create_bucket(Bucket="bucket")
    names = ["a.jpg", "b//c.jpg", "d/./e.jpg", "f.jpg"]
    for name in names:
        client.put_object(Bucket="bucket", Key=f"folder/{name}", Body=name.encode())
    storage = Storage("s3://bucket/folder")
    assert sorted(entry.path for entry in storage.list()) == sorted(names)
    assert [storage.read(name) for name in names] == [name.encode() for name in names]


def test_a_failed_write_leaves_no_trace_on_a_local_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)
    storage.write("x", b"before")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write("x", b"after")
    assert storage.read("x") == b"before"
    assert [entry.path for entry in storage.list()] == ["x"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://KEY:SECRET@bucket/x", "credentials don't belong in an s3:// URL"),
        ("s3://", "names no bucket"),
        ("nonsense://x/y", "can't be opened"),
        ("  ", "empty path"),
    ],
)
def test_a_bad_url_is_one_sentence(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Storage(url)
    assert "SECRET" not in str(caught.value)


def test_an_unknown_storage_option_is_named() -> None:
    with pytest.raises(UserError, match="storage option 'secret' is not known"):
        Storage("s3://bucket", {"secret": "x"})


def test_an_absent_profile_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="profile 'nobody' does not exist"):
        list(Storage("s3://bucket", {"profile": "nobody"}).list())


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (
        "x/",
        f"file://{tmp_path}/x",
        f"file:{tmp_path}/x/",
        f"FILE://localhost{tmp_path}/x",
    ):
        assert normalize_url(text) == str(tmp_path / "x")
    assert normalize_url(f"/{tmp_path}//x") == str(tmp_path / "x")
    assert normalize_url("file:x") == str(tmp_path / "file:x")
    assert normalize_url("s3://b/x/") == "s3://b/x"


def test_a_local_folder_may_have_colons_in_its_name(tmp_path: Path) -> None:
    folder = Storage(tmp_path / "a::b")
    folder.write("x::y.jpg", b"1")
    assert [entry.path for entry in Storage(tmp_path).list()] == ["a::b/x::y.jpg"]
    assert [entry.path for entry in folder.list()] == ["x::y.jpg"]


class OneClosedFolder(MemoryFileSystem):
    """A store of which one folder can't be listed at the moment."""

    protocol = "closed"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("closed://", "memory://", 1))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if path.rstrip("/").endswith("closed"):
            raise OSError("503 Service Unavailable")
        return super().ls(path, detail=detail, **options)


fsspec.register_implementation("closed", OneClosedFolder, clobber=True)


@pytest.mark.parametrize("folder", ["photos", "photos/closed"])
def test_a_listing_by_fsspec_is_whole_or_an_error(folder: str) -> None:
    """fsspec's own `walk` leaves out what can't be listed: its images would count as removed."""
    for name in ("photos/a.jpg", "photos/closed/b.jpg", "photos/open/c.jpg"):
        MemoryFileSystem().pipe_file(f"/{name}", b"x")
    with pytest.raises(OSError, match="503"):
        list(Storage(f"closed://{folder}").list())
    assert [entry.path for entry in Storage("closed://photos").list("open")] == ["open/c.jpg"]
