"""An archive as a folder: what reads photos by name takes members."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage.archive_folder import ArchiveFolder, folder_at
from pipeline.storage.objects import open_object, read_named
from pipeline.storage.storage import Storage
from tests.archive_files import tarred, zipped

FILES = {"val/0.jpg": b"zero", "val/deep/1.jpg": b"one" * 9000, "top.png": b""}


@pytest.fixture(params=["a.zip", "deflated.zip", "a.tar"])
def archive(request: pytest.FixtureRequest, storage: Storage) -> str:
    """An archive on a disk and in S3."""
    method = zipfile.ZIP_DEFLATED if request.param.startswith("defl") else zipfile.ZIP_STORED
    data = tarred(FILES) if request.param.endswith("tar") else zipped(FILES, method)
    storage.write(request.param, data)
    return storage.join(request.param)


def test_members_are_listed_read_and_opened_by_name(archive: str) -> None:
    folder = folder_at(archive)
    assert {entry.path: entry.size for entry in folder.list()} == {
        name: len(data) for name, data in FILES.items()
    }
    for name, data in FILES.items():
        assert folder.read(name) == data
        assert folder.open(name).read() == data
        assert read_named(folder, name) == data
        assert folder.exists(name)
    assert not folder.exists("val")
    with pytest.raises(FileNotFoundError):
        folder.read("0.jpg")


def test_a_folder_within_an_archive(archive: str) -> None:
    folder = pickle.loads(pickle.dumps(folder_at(f"{archive}#val")))
    assert {entry.path for entry in folder.list()} == {"0.jpg", "deep/1.jpg"}
    assert read_named(folder, "deep/1.jpg") == FILES["val/deep/1.jpg"]
    assert folder.join("0.jpg") == f"{archive}#val/0.jpg"


def test_a_uri_names_a_member_by_its_path_or_by_the_end_of_it(archive: str) -> None:
    for name in ("val/deep/1.jpg", "deep/1.jpg", "1.jpg"):
        folder, member = open_object(f"{archive}#{name}")
        assert folder.read(member) == FILES["val/deep/1.jpg"]


def test_a_zip_within_a_zip_is_a_folder(tmp_path: Path) -> None:
    inner = zipped({f"maps/{n}.png": b"%d" % n for n in range(3)})
    outer = tmp_path / "annotations.zip"
    outer.write_bytes(zipped({"ann/maps.json": b"{}", "ann/maps.zip": inner}, zipfile.ZIP_DEFLATED))
    folder = pickle.loads(pickle.dumps(folder_at(f"{outer}#maps")))
    assert {entry.path for entry in folder.list()} == {"0.png", "1.png", "2.png"}
    assert read_named(folder, "2.png") == b"2"
    assert folder.url == f"{outer}#maps"
    outer.write_bytes(zipped({"ann/maps.zip": zipped({"maps/9.png": b"new"})}))
    assert {entry.path for entry in folder_at(f"{outer}#maps").list()} == {"9.png"}


def test_equal_members_have_equal_etags_wherever_they_lie(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(FILES))
    (tmp_path / "b.tar").write_bytes(tarred(FILES))
    one, other = (ArchiveFolder(str(tmp_path / name)) for name in ("a.zip", "b.tar"))
    assert one.info("val/0.jpg").etag == other.info("val/0.jpg").etag


def test_a_damaged_archive_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(FILES)[:-4])
    with pytest.raises(UserError, match="no directory at its end"):
        list(folder_at(str(tmp_path / "a.zip")).list())


def test_an_archive_is_not_written_to(archive: str, storage: Storage) -> None:
    before = sorted(entry.path for entry in storage.list())
    folder = folder_at(archive)
    for write in (folder.write, folder.write_if_absent, folder.create_shard):
        with pytest.raises(UserError, match="lies in an archive"):
            write("new.png", b"x")
    with pytest.raises(UserError, match="lies in an archive"):
        folder.delete("top.png")
    assert sorted(entry.path for entry in storage.list()) == before


def test_many_names_are_found_by_the_end_of_their_path(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({f"val/{n:06}.jpg": b"" for n in range(20_000)}))
    folder = ArchiveFolder(str(tmp_path / "a.zip"))
    assert all(folder.named(f"{n:06}.jpg") == f"val/{n:06}.jpg" for n in range(20_000))


@pytest.mark.parametrize("name", ["empty.zip", "empty.tar"])
def test_an_empty_object_is_an_empty_archive(storage: Storage, name: str) -> None:
    storage.write(name, b"")
    with pytest.raises(UserError, match=r"the archive is empty \(empty\)"):
        list(folder_at(storage.join(name)).list())
